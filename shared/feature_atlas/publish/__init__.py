"""Publish: everything derived from the pictures of an atlas, so that people can look at it and take it home.

    publish("s3://bucket/resnet50")

Idempotent and incremental: only what changed is built.  Safe while workers write, right on a partial atlas.
"""

from feature_atlas.publish.site import Published, publish

__all__ = ["Published", "publish"]
