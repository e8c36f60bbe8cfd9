"""What runs beside a program whose function is called.

It calls the function with every list of arguments and prints the results as one JSON line on the real standard output,
which the program's own prints do not reach. Each result becomes text before the next call: what a later call changes in
it does not count. It can be fooled by the program in every way but one: it does not know what is expected. The program
is a module that was imported, as far as it can tell: dataclasses and pickle look it up.
"""

from __future__ import annotations

HARNESS = """
import json, os, sys, types
calls = json.loads(sys.stdin.buffer.read())
name, dumps = calls["function"], json.dumps
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
module = sys.modules["solution"] = types.ModuleType("solution")
namespace = module.__dict__
exec(calls["prelude"], namespace)
namespace.pop(name, None)
with open("solution.py", encoding="utf-8") as file:
    exec(compile(file.read(), "solution.py", "exec"), namespace)

def find():
    own = calls["method"] and hasattr(namespace.get("Solution"), name)
    return namespace[name] if name in namespace and not own else getattr(namespace["Solution"](), name)

results = []
for args in calls["args"]:
    try:
        value = find()(*args)
    except Exception as error:
        results.append(dumps(["error", type(error).__name__]))
        continue
    try:
        results.append(dumps(["value", value]))
    except Exception:
        results.append(dumps(["no JSON", type(value).__name__]))
out.write("[" + ", ".join(results) + "]")
out.close()
"""

# Solutions are annotated with names of typing that they do not import. LiveCodeBench's own runner has more for them:
# all names of these modules, of which later ones win, then the modules themselves, and a deeper recursion.
PRELUDE = "from typing import *"
_MODULES = (
    "string, re, datetime, collections, heapq, bisect, copy, math, random, statistics, itertools, functools, operator, "
    "io, sys, json"
)
LIVE_CODE_BENCH_PRELUDE = "\n".join(
    [
        *(f"from {module} import *" for module in [*_MODULES.split(", "), "builtins", "typing"]),
        f"import {_MODULES}",
        "sys.setrecursionlimit(50000)",
    ]
)
