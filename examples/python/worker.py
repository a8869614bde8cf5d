"""A keylane handler in Python, for `keylane work --pipe 'python3 worker.py FILE'`.

A line of JSON comes in per task, a line of JSON goes out per answer. keylane runs one
such process per slot, and never two tasks of one resource at once, in the whole fleet.
This one appends what it is told to a file, and shows every answer there is.
"""

import json
import sys


class Retry(Exception):
    """Not now: the task is to be tried again."""


def execute(task: dict, path: str) -> str:
    """Executes one task, and returns a few words for whoever published it."""
    order = task["payload"]
    if order.get("fails"):
        raise ValueError(order["fails"])
    if order.get("not_before", 0) > task["attempt"]:
        raise Retry("too early")
    # A store would be asked to refuse what comes late: task["fencing_token"] is higher
    # with every owner of the resource.
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps([task["resource"], order["n"]]) + "\n")
    return f"order {order['n']}"


def main():
    for line in sys.stdin:
        task = json.loads(line)
        try:
            answer = {"status": "executed", "result": execute(task, sys.argv[1])}
        except Retry as retry:
            answer = {"status": "retry", "after_ms": 20, "reason": str(retry)}
        except ValueError as error:
            answer = {"status": "dead", "reason": str(error)}
        print(json.dumps({"id": task["id"], **answer}), flush=True)


if __name__ == "__main__":
    main()
