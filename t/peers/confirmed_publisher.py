"""Publishes to a RabbitMQ queue so that nothing is lost: one message after the other, each until the broker has confirmed it.

Reads lines `ID BODY`; ID becomes the message_id. Prints the ID of each that is confirmed. What is not confirmed may be in the
queue all the same, and is there twice then, with one message_id.
"""

import sys
import time

import pika

url, queue = sys.argv[1:]


def connect():
    while True:
        try:
            channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
            channel.queue_declare(queue, passive=True)
            channel.confirm_delivery()
            return channel
        except (pika.exceptions.AMQPError, OSError):
            time.sleep(0.05)


channel = connect()
for line in sys.stdin:
    message_id, body = line.rstrip("\n").split(" ", 1)
    properties = pika.BasicProperties(message_id=message_id, delivery_mode=2)
    while True:
        try:
            # With confirms this returns when the message is safe, and raises if it is not.
            channel.basic_publish("", queue, body, properties, mandatory=True)
            break
        except (pika.exceptions.AMQPError, OSError):
            channel = connect()
    print(message_id, flush=True)
