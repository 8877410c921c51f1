"""Feature Atlas: the contract and the reader.  Needs neither torch nor Celery."""

from feature_atlas.errors import AtlasError

__version__ = "0.1.0"
__all__ = ["AtlasError", "__version__"]
