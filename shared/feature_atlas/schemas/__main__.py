"""``python -m feature_atlas.schemas`` writes the committed JSON Schemas anew."""

from feature_atlas.schemas import write

write()
