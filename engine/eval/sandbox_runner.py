"""Grades one sample: the request comes on standard input, one JSON object leaves on descriptor 3.

Before the grader's first line runs, a filter (descriptor 4) closes what starting this interpreter still needed.
"""
import ctypes
import json
import math
import numbers
import os
import sys

MESSAGE_CHARACTERS = 600


class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_void_p)]


def seal():
    program = os.read(4, 65536)
    os.close(4)
    memory = ctypes.create_string_buffer(program, len(program))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    sealed = Filter(len(program) // 8, ctypes.addressof(memory))
    if not program or libc.prctl(22, 2, ctypes.addressof(sealed), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_SECCOMP")


def answer(**fields):
    data = json.dumps(fields).encode()
    while data:
        data = data[os.write(3, data):]
    os._exit(0)


def describe(error):
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == "<grader>" else None
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<grader>":
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f"line {line}: " if line is not None else ""
    return f"{where}{type(error).__name__}{': ' if text else ''}{text}"[:MESSAGE_CHARACTERS]


def defines_grade(tree):
    import ast

    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name == "grade":
            return True
        names = [alias.asname or alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")]
        targets = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
        if "grade" in names + targets or isinstance(node, (ast.If, ast.Try, ast.With)):
            return True
    return False


def run(request):
    source = request["source"]
    if request["mode"] == "check":
        tree = compile(source, "<grader>", "exec", 0x400)
        if not defines_grade(tree):
            return {"error": "the source defines no function grade(sample, item)"}
        compile(source, "<grader>", "exec")
        return {"value": 0}
    scope = {"__name__": "grader", "__builtins__": __builtins__}
    exec(compile(source, "<grader>", "exec"), scope)
    if not callable(scope.get("grade")):
        return {"error": "the source defines no function grade(sample, item)"}
    value = scope["grade"](request["sample"], request["item"])
    if not isinstance(value, numbers.Real):
        return {"error": f"grade returned {type(value).__name__}, not a number"}
    value = float(value)
    if not math.isfinite(value):
        return {"error": f"grade returned {value}, not a finite number"}
    return {"value": value}


try:
    seal()
except BaseException as error:
    answer(setup=describe(error))
try:
    result = run(json.loads(sys.stdin.buffer.read()))
except BaseException as error:
    try:
        result = {"error": describe(error)}
    except BaseException:
        result = {"error": type(error).__name__}
answer(**result)
