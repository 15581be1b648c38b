"""Enqueue an event whenever a model is saved or deleted.

    # in the ready() of an AppConfig
    from django_signals import connect
    connect(Post, queue="posts", redis=redis.Redis())

The event is built from the instance at the moment of the signal and enqueued when the transaction commits, so nobody
sees an event about something that was rolled back. If the process dies between commit and enqueue, the event is lost: where
that must not happen, see outbox.py.

The queue is a Thoonk queue in the classic schema; the worker reads it with type = "thoonk".
"""

import json
import time
import uuid

from django.db import transaction
from django.db.models.signals import post_delete, post_save
from django.forms.models import model_to_dict


def connect(model, queue, redis):
    """Events of `model` go to `queue`."""

    def saved(sender, instance, created, **kwargs):
        _enqueue_on_commit(redis, queue, "created" if created else "changed", instance)

    def deleted(sender, instance, **kwargs):
        _enqueue_on_commit(redis, queue, "deleted", instance)

    # weak=False: nobody else holds on to these functions.
    post_save.connect(saved, sender=model, weak=False, dispatch_uid=f"push-save-{queue}")
    post_delete.connect(deleted, sender=model, weak=False, dispatch_uid=f"push-delete-{queue}")


def _enqueue_on_commit(redis, queue, event, instance):
    # Serialised now: by the time of the commit the instance may have changed again.
    body = json.dumps({"event": event, **model_to_dict(instance), "id": instance.pk}, default=str)
    transaction.on_commit(lambda: enqueue(redis, queue, body))


def enqueue(redis, queue, body):
    """What Job.put of thoonk.py does."""
    job = uuid.uuid4().hex
    pipe = redis.pipeline()
    pipe.lpush(f"feed.ids:{queue}", job)
    pipe.incr(f"feed.publishes:{queue}")
    pipe.hset(f"feed.items:{queue}", job, body)
    pipe.zadd(f"feed.published:{queue}", {job: int(time.time() * 1000)})
    pipe.execute()
    return job
