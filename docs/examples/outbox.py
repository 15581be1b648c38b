"""Transactional outbox: an event is as durable as the change that it tells of.

The application writes the event into a table of its own database, in the same transaction as the change. This program takes
the events from there, in order, and posts them to a worker's http_in source with ack = "spooled"; a row is deleted only when the worker
has said 2xx. Run one of it: `python3 outbox.py app.sqlite http://127.0.0.1:8081/events`, with `--once` to end when the table is empty.

    CREATE TABLE outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT NOT NULL);

After a crash between the answer and the DELETE an event is sent twice. It carries its number in "outbox_id", so that a `dedupe` stage
with key = "{outbox_id}" can leave the second one out.

Shown with SQLite; PostgreSQL and MySQL differ only in how the connection is made.
"""

import http.client
import json
import sqlite3
import sys
import time
import urllib.parse

BATCH = 100
IDLE_SECONDS = 0.2
RETRY_SECONDS = 1.0


def drain(database, url):
    """Sends what is there, oldest first, and returns how many events that were."""
    rows = database.execute("SELECT id, body FROM outbox ORDER BY id LIMIT ?", (BATCH,)).fetchall()
    if not rows:
        return 0
    lines = [json.dumps({**json.loads(body), "outbox_id": number}) for number, body in rows]
    post(url, "\n".join(lines))
    with database:
        database.execute("DELETE FROM outbox WHERE id <= ?", (rows[-1][0],))
    return len(rows)


def post(url, body):
    """Returns when the worker has promised to publish it."""
    target = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(target.hostname, target.port, timeout=10)
    try:
        connection.request("POST", target.path, body.encode(), {"Content-Type": "application/x-ndjson"})
        answer = connection.getresponse()
        if not 200 <= answer.status < 300:
            raise OSError(f"the worker answered {answer.status}: {answer.read(500)!r}")
    finally:
        connection.close()


def main():
    path, url = sys.argv[1:3]
    once = "--once" in sys.argv
    database = sqlite3.connect(path)
    while True:
        try:
            sent = drain(database, url)
        except OSError as error:
            print(f"outbox: {error}; trying again", file=sys.stderr)
            time.sleep(RETRY_SECONDS)
            continue
        if sent == 0 and once:
            return
        if sent == 0:
            time.sleep(IDLE_SECONDS)


if __name__ == "__main__":
    main()
