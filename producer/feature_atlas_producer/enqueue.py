"""Hands an atlas to the queue: whatever is neither done nor on its way."""

from __future__ import annotations

import logging
from collections.abc import Callable

from feature_atlas import steer
from feature_atlas.atlas import Atlas
from feature_atlas.broker import connect, explain, trouble
from feature_atlas.messages import FLAGS
from feature_atlas.queue import Template, make_app
from feature_atlas.reconcile import LOCK, Reconciled, reconcile

log = logging.getLogger(__name__)

#: Seconds to wait for another process that enqueues the same atlas: longer than a killed one's lock lasts.
PATIENCE = LOCK + 15.0


def enqueue(
    atlas: Atlas, broker: str, *, wait: float = PATIENCE, told: Callable[[int], None] | None = None
) -> Reconciled:
    """Sends every job of the atlas that is neither done, failed for good, queued nor in hand.

    Safe at any time and to repeat, while workers run, after the broker lost everything, and from several processes.
    An atlas that was cancelled goes on; a paused one stays paused.

    Args:
        atlas: whose jobs.
        broker: URL of the message broker.
        wait: seconds to wait for another process that enqueues the same atlas.
        told: called with the number of messages sent so far.

    Raises:
        RequestError: not the URL of a broker.
        BrokerError: it cannot be reached or used, or another process is at it.
        StoreError: the atlas cannot be listed.
    """
    client = connect(broker)
    try:
        if steer.flag(client, atlas.url) == "cancelled":
            client.hdel(FLAGS, atlas.url)
        result = reconcile(client, Template(make_app(broker)), atlas, wait=wait, told=told)
        log.info("%d sent in %.2f s, the store listed in %.2f s", result.sent, result.sending, result.listing)
        return result
    except trouble() as error:
        raise explain(error, broker) from error
    finally:
        client.close()
