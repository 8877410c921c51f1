"""What is asked for: frozen records whose digest is their identity.

A field's default never changes once released and is always the neutral value, so that an old record keeps its
digest when a field is added (the digest leaves out what equals its default).  What is *good* lives in
:mod:`feature_atlas.presets`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from feature_atlas.errors import RequestError, did_you_mean

#: Raised whenever a golden picture moves: a worker with another number hands the job back.
RENDERER = 2
#: One path segment of a key: parts joined by single dots, so that it can neither hide nor leave its folder.
NAME_PATTERN = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"
NAME_LENGTH = 200
#: Channels are spelt with five digits in every key.
MAX_CHANNELS = 100_000
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=NAME_LENGTH)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Unity = Annotated[float, Field(ge=0.0, le=1.0)]
#: (value at the first step, value at the last step), linear between.
Ramp = tuple[Annotated[float, Field(ge=0.0, le=64.0)], Annotated[float, Field(ge=0.0, le=64.0)]]


class Record(BaseModel):
    """A frozen record.  Unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
    #: How fields of several numbers are written, for people who wrote them otherwise.
    forms: ClassVar[dict[str, str]] = {}

    def canonical(self) -> bytes:
        """The one JSON spelling of this record: sorted keys, no blanks, defaults left out."""
        data = _unsigned_zeros(self.model_dump(mode="json", exclude_defaults=True))
        return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    def digest(self) -> str:
        """16 hex digits of SHA-256 over the record's kind and canonical JSON."""
        return hashlib.sha256(type(self).__name__.encode() + b"\0" + self.canonical()).hexdigest()[:16]

    @classmethod
    def build(cls, what: str, data: Any) -> Self:
        """A validated record from loose data.

        Raises:
            RequestError: one sentence that names ``what``, the field, the value and what is possible.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise RequestError(f"{what}: {sentence(error, cls)}") from None


def _unsigned_zeros(value: Any) -> Any:
    """The same JSON with -0.0 as 0.0: they are equal, so they must digest alike."""
    if isinstance(value, dict):
        return {key: _unsigned_zeros(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unsigned_zeros(item) for item in value]
    return value + 0.0 if isinstance(value, float) else value


def sentence(error: ValidationError, cls: type[BaseModel]) -> str:
    """What is wrong first: ``steps=0: input should be greater than or equal to 1``."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    given = repr(first["input"])
    given = given if len(given) <= 80 else f"{given[:77]}..."
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        fields = sorted(info.alias or name for name, info in cls.model_fields.items())
        known = f"{did_you_mean(field, fields)} (fields: {', '.join(fields)})" if len(first["loc"]) == 1 else ""
        return f"unknown field {field!r}{known}"
    form = getattr(cls, "forms", {}).get(field.partition(".")[0])
    if form is not None:
        field = field.partition(".")[0]
        if first["type"] in ("missing", "tuple_type", "too_long", "too_short"):
            return f"{field}={given}: not the numbers wanted; write {form}"
        return f"{field}={given}: {message[:1].lower()}{message[1:]}; write {form}"
    if first["type"] == "missing":
        return f"{field} is missing"
    if not field:  # a rule between fields: its own words say everything
        return message
    return f"{field}={given}: {message[:1].lower()}{message[1:]}"


class ModelRef(Record):
    """Which network, with which weights, fed how.

    ``weights`` is a torchvision enum name (``IMAGENET1K_V2``), ``random:SEED``, ``builtin``, or ``sha256:<hex>``:
    a file that lies in the atlas itself under ``weights/``.
    """

    name: Annotated[str, Field(max_length=200)]
    weights: Annotated[str, Field(max_length=200)]
    #: SHA-256 of the weights' file where it is known when planning (a whole one or, as torchvision publishes
    #: them in its file names, the first 8 digits).
    weights_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{8}|[0-9a-f]{64})?$")] = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    #: (height, width) in pixels that the network was made for; pictures may have another size.
    input_size: tuple[Annotated[int, Field(ge=1, le=8192)], Annotated[int, Field(ge=1, le=8192)]] = (224, 224)

    @model_validator(mode="after")
    def _known_normalisation(self) -> Self:
        if len(self.mean) != len(self.std) or any(s <= 0 for s in self.std):
            raise ValueError("mean and std must have one entry per input channel, std above 0")
        return self


class Recipe(Record):
    """Every number that can change a pixel, and nothing else.  Defaults are neutral; see presets for good ones."""

    forms: ClassVar[dict[str, str]] = {
        "size": "size=224 or size=224,320 (height, width)", "network_size": "network_size=224 or network_size=224,320",
        "position": "position=3,4 (row, column)", "betas": "betas=0.9,0.999", "jitter": "jitter=8 or jitter=8,4",
        "scale": "scale=0.9,1.1", "rotate": "rotate=-5,5", "transform_ramp": "transform_ramp=1,0.5", "cut": "cut=1,0",
        "blur": "blur=1,0", "blur_random": "blur_random=0,1",
    }  # fmt: skip

    # What stands below a field is its description: in the schemas, and in what ``feature-atlas recipes`` says.
    model_config = ConfigDict(use_attribute_docstrings=True)

    # -- what is maximised
    objective: Literal["channel", "neuron", "layer"] = "channel"
    """A channel's mean, one neuron of it, or the mean square of the whole layer (DeepDream)."""
    position: tuple[int, int] | None = None
    """(row, column) of the neuron on the layer's map; None is the centre."""
    sign: Literal[1, -1] = 1
    """+1 maximises, -1 minimises."""
    # -- the optimisation
    size: tuple[Annotated[int, Field(ge=8, le=2048)], Annotated[int, Field(ge=8, le=2048)]] = (128, 128)
    """(height, width) of the picture in pixels."""
    steps: Annotated[int, Field(ge=1, le=100_000)] = 512
    """Steps of the ascent; the time grows with them."""
    learning_rate: Annotated[float, Field(gt=0.0, le=100.0)] = 0.05
    """Adam's step size on the parameters."""
    learning_rate_end: Unity = 1.0
    """The last step's learning rate as a share of the first's, reached along a cosine; 1 is constant."""
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (
        0.9,
        0.999,
    )
    """Adam's decay rates."""
    adapt: Literal["coefficient", "frequency"] = "coefficient"
    """What shares one second moment of Adam: each ``coefficient`` its own as published, or all coefficients of one
    half-octave ``frequency`` band, which keeps their proportions and gets there in fewer steps."""
    # -- what is optimised
    parameterization: Literal["fourier", "pixel"] = "fourier"
    """What Adam moves: the picture's Fourier coefficients, or its pixels."""
    decay: Annotated[float, Field(ge=0.0, le=4.0)] = 1.0
    """Amplitude of the Fourier basis ~ 1 / frequency**decay."""
    init_std: Annotated[float, Field(gt=0.0, le=10.0)] = 0.01
    """Standard deviation of the parameters at the start."""
    decorrelate: bool = True
    """Colours in the basis in which those of natural images are uncorrelated."""
    # -- what the picture must be robust to
    pad: Annotated[int, Field(ge=0, le=256)] = 0
    """Grey border in pixels that is added around the picture before the network sees it."""
    jitter: tuple[Annotated[float, Field(ge=0.0, le=256.0)], Annotated[float, Field(ge=0.0, le=256.0)]] = (
        0.0,
        0.0,
    )
    """Shifts before and after scaling and rotating: uniform within +-pixels."""
    scale: Annotated[tuple[Annotated[float, Field(gt=0.1, lt=10.0)], ...], Field(min_length=1, max_length=64)] = (1.0,)
    """Factors: drawn between the least and the greatest, or (``draw="choice"``) one of them."""
    rotate: Annotated[tuple[Annotated[float, Field(ge=-180, le=180)], ...], Field(min_length=1, max_length=64)] = (0.0,)
    """Degrees, counter-clockwise; drawn like ``scale``."""
    draw: Literal["uniform", "choice"] = "uniform"
    """How ``scale`` and ``rotate`` are drawn."""
    transform_ramp: Ramp = (1.0, 1.0)
    """How strong the transforms are at the first and at the last step, as a factor."""
    fill: Unity = 0.5
    """What surrounds the picture, 0 black to 1 white."""
    # -- blur, sigma in pixels
    cut: Ramp = (0.0, 0.0)
    """Coarse to fine: a Gaussian low-pass of the spectrum; what is still cut at the end is cut in the picture."""
    blur: Ramp = (0.0, 0.0)
    """A blur of what the network sees, annealed."""
    blur_random: Ramp = (0.0, 0.0)
    """A blur of what the network sees, sigma drawn uniformly between two values per image and step."""
    coarse: Annotated[float, Field(ge=0.125, le=1.0)] = 1.0
    """The first ``coarse_steps`` run at this share of the resolution."""
    coarse_steps: Annotated[int, Field(ge=0)] = 0
    """How many steps run at the share of the resolution that ``coarse`` says."""
    network_size: tuple[Annotated[int, Field(ge=8, le=2048)], Annotated[int, Field(ge=8, le=2048)]] | None = None
    """(height, width) that the network sees: the picture is resampled bilinearly.  None: the picture's own."""
    # -- penalties; weights >= 0
    penalties: Literal["relative", "absolute"] = "relative"
    """``relative``: the objective's gradient is scaled to unit RMS per image first, so that a weight means the same
    in every layer of every network.  ``absolute``: as published, for presets that repeat somebody's numbers."""
    total_variation: Annotated[float, Field(ge=0.0, le=1e6)] = 0.0
    """Weight of the differences between neighbouring pixels."""
    diversity: Annotated[float, Field(ge=0.0, le=1e6)] = 0.0
    """Weight of the likeness of a job's images (mean pairwise cosine of what the layer makes of them)."""
    frequency_penalty: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    """Frequency penalization: every step multiplies each Fourier coefficient by 1 - rate * penalty *
    (f / 0.25)**4, f in cycles per pixel: a weight decay beside Adam, not through it, so its strength is the same in
    every layer of every network."""
    # -- dead units
    redirect: Annotated[int, Field(ge=0)] = 16
    """Redirected ReLU gradients during the first steps, while an image's whole gradient is blocked (Lucid)."""
    redirect_always: bool = True
    """... and whenever the gradient is blocked again later."""
    # -- the result
    images: Annotated[int, Field(ge=1, le=64)] = 1
    """Diverse images of one job."""
    pick: Literal["best", "last"] = "best"
    """``best`` of a few checkpoints on clean and held-out views, or the ``last`` iterate as published methods do."""
    keep_initial: bool = False
    """Also keep the picture before the first step."""
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    """Each channel draws its own from it; another one gives other pictures."""
    renderer: Annotated[int, Field(ge=1)] = 1
    """The renderer's generation; presets carry the present one (the default stays 1, see above)."""

    @field_validator("size", "network_size", mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int) else value

    @field_validator("scale", "rotate", mode="before")
    @classmethod
    def _always(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | float) else value

    @field_validator("jitter", mode="before")
    @classmethod
    def _single_jitter(cls, value: Any) -> Any:
        return (value, 0.0) if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _sense(self) -> Self:
        if self.diversity and self.images < 2:
            raise ValueError(f"diversity {self.diversity} needs at least 2 images per job, not {self.images}")
        if self.position is not None and self.objective != "neuron":
            raise ValueError(f"a position belongs to the objective 'neuron', not {self.objective!r}")
        if self.frequency_penalty and self.parameterization != "fourier":
            raise ValueError(f"frequency_penalty {self.frequency_penalty} needs the parameterization 'fourier'")
        if self.coarse_steps > self.steps:
            raise ValueError(f"coarse_steps {self.coarse_steps} is more than steps {self.steps}")
        return self


class Unit(NamedTuple):
    """The address of one job within an atlas; sorts and enqueues contiguously by group."""

    variant: str
    layer: str
    channel: int

    def __str__(self) -> str:
        return f"{self.layer}:{self.channel}" + ("" if self.variant == "channel" else f"@{self.variant}")


class Job(Record):
    """One channel of one layer under one variant.  Identity and seed derive from content only."""

    model: ModelRef
    layer: Name
    channel: Annotated[int, Field(ge=0, lt=MAX_CHANNELS)]
    variant: Name
    recipe: Recipe

    @property
    def unit(self) -> Unit:
        """The job's address in its atlas."""
        return Unit(self.variant, self.layer, self.channel)

    @property
    def id(self) -> str:
        """16 hex digits over model, recipe, layer and channel (not the variant's name)."""
        parts = (self.model.digest(), self.recipe.digest(), self.layer, str(self.channel))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    @property
    def seed(self) -> int:
        """53-bit seed; the same for the same layer and channel of every checkpoint, so that they compare."""
        return seed_of(self.recipe.seed, self.layer, self.channel)


def seed_of(base: int, layer: str, channel: int, attempt: int = 0) -> int:
    """53-bit seed of a job from the recipe's seed, its layer and channel; ``attempt`` > 0 for retries of a dead one.

    53 bits are exact in every JSON reader, a browser's included.
    """
    text = f"feature-atlas/seed/1\0{base}\0{layer}\0{channel}" + (f"\0{attempt}" if attempt else "")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 11
