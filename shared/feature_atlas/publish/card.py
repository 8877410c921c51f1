"""What other tools read an atlas by: the Hugging Face dataset card and the Croissant description."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from feature_atlas import keys
from feature_atlas.plan import Plan
from feature_atlas.publish.records import FileEntry

#: The standard context of Croissant 1.0, whose spelling its validator compares.
_CONTEXT = {
    "@language": "en", "@vocab": "https://schema.org/", "citeAs": "cr:citeAs", "column": "cr:column",
    "conformsTo": "dct:conformsTo", "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"}, "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/", "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"}, "extract": "cr:extract", "field": "cr:field",
    "fileObject": "cr:fileObject", "fileProperty": "cr:fileProperty", "fileSet": "cr:fileSet", "format": "cr:format",
    "includes": "cr:includes", "isLiveDataset": "cr:isLiveDataset", "jsonPath": "cr:jsonPath", "key": "cr:key",
    "md5": "cr:md5", "parentField": "cr:parentField", "path": "cr:path", "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet", "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated",
    "replace": "cr:replace", "samplingRate": "cr:samplingRate", "sc": "https://schema.org/",
    "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField", "transform": "cr:transform",
}  # fmt: skip
#: Columns of metadata.jsonl that the description lists, with their types.
_FIELDS = {
    "file_name": "sc:Text", "layer": "sc:Text", "channel": "sc:Integer", "variant": "sc:Text", "status": "sc:Text",
    "activation": "sc:Float", "robust": "sc:Float", "normalized": "sc:Float", "sha256": "sc:Text",
}  # fmt: skip


def size_category(pictures: int) -> str:
    """Hugging Face's word for so many rows."""
    for limit, word in ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")):
        if pictures < limit:
            return word
    return "1M<n<10M"


def dataset_card(title: str, plan: Plan, counts: Mapping[str, int], license_name: str, root_sha256: str) -> bytes:
    """``README.md``: with its ``configs``, ``datasets.load_dataset`` finds the pictures and their numbers."""
    variants = "\n".join(
        f"- `{name}`: {recipe.objective}, {'maximised' if recipe.sign > 0 else 'minimised'},"
        f" {recipe.steps} steps, {recipe.size[0]} x {recipe.size[1]} pixels"
        for name, recipe in plan.variants.items()
    )
    paths = [keys.METADATA, f"{keys.IMAGES}**/*.png"]
    head = {
        "license": license_name.lower(), "pretty_name": f"Feature atlas of {title}",
        "tags": ["interpretability", "feature-visualization", "feature-atlas"],
        "size_categories": [size_category(counts["done"])],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": paths}]}],
    }  # fmt: skip
    # JSON is YAML, and quotes whatever a name may hold.
    front = "\n".join(f"{name}: {json.dumps(value)}" for name, value in head.items())
    return f"""---
{front}
---

# Feature atlas of {_plain(title)}

{counts["done"]:,} feature visualisations of {len(plan.layers):,} layers, each with its numbers and its provenance.
Open `index.html` to look at them.

{variants}

```python
from datasets import load_dataset
pictures = load_dataset("path/to/this/folder", split="train")

from feature_atlas import Atlas
atlas = Atlas.open("path/to/this/folder")
```

| file | holds |
|---|---|
| `images/<variant>/<layer>/<channel>.png` | the pictures; each carries its whole record in an iTXt chunk |
| `metadata.jsonl`, `index.jsonl.gz` | one row per picture: the main numbers, all numbers |
| `layers/<layer>/layer.json` | one layer, with hashes and places in the packs |
| `packs/<variant>/<layer>/<block>.tar` | 256 channels in one download; WebDataset reads them |
| `published.json` | everything published, with hashes |

Check what you hold: `feature-atlas verify .`, or without our software

    find images -name '*.png' | LC_ALL=C sort | xargs sha256sum | sha256sum

which prints the root digest `{root_sha256}`: cite it.
Pictures: {_plain(license_name)}.
An optimised picture shows what drives a channel most; it is no proof of what the channel means.
""".encode()


def _plain(text: str) -> str:
    """Text without what Markdown or HTML would act on."""
    return "".join(c if c.isalnum() or c in " .,:;-+()=/_" else "?" for c in text)


def croissant(title: str, license_name: str, root_sha256: str, entries: Mapping[str, FileEntry]) -> bytes:
    """``croissant.json``: the MLCommons description of the dataset."""
    files: Sequence[tuple[str, str, str]] = (
        ("metadata", keys.METADATA, "application/jsonlines"),
        ("index", keys.INDEX, "application/gzip"),
    )
    distribution: list[dict[str, Any]] = [
        {
            "@type": "cr:FileObject", "@id": name, "name": name, "contentUrl": key, "encodingFormat": encoding,
            "sha256": entries[key].sha256, "contentSize": f"{entries[key].bytes} B",
        }
        for name, key, encoding in files
    ]  # fmt: skip
    record = {
        "@context": _CONTEXT, "@type": "sc:Dataset", "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": _plain(f"Feature atlas of {title}"), "version": "1.0.0",
        "description": f"Feature visualisations of {_plain(title)}: a picture per channel, its numbers and provenance.",
        "license": f"https://spdx.org/licenses/{_plain(license_name)}.html",
        "citeAs": f"Feature atlas of {_plain(title)}, root sha256:{root_sha256}",
        "keywords": ["interpretability", "feature visualization"],
        "distribution": distribution,
        "recordSet": [{
            "@type": "cr:RecordSet", "@id": "pictures", "name": "pictures", "key": {"@id": "pictures/file_name"},
            "field": [
                {
                    "@type": "cr:Field", "@id": f"pictures/{name}", "name": name, "dataType": kind,
                    "source": {"fileObject": {"@id": "metadata"}, "extract": {"column": name}},
                }
                for name, kind in _FIELDS.items()
            ],
        }],
    }  # fmt: skip
    return json.dumps(record, indent=1).encode() + b"\n"
