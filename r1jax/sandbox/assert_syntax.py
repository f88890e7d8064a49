"""The syntax tree of a test with asserts: what it takes from the program, and where its statements end."""

import ast
import builtins
from typing import Any

SETTLE = "__settle__"  # the name that is called behind statements


def settle_behind_statements(tree: ast.Module) -> ast.Module:
    """The test with a call of `SETTLE` behind every statement that calls something."""
    return ast.fix_missing_locations(_Settling().visit(tree))


class _Settling(ast.NodeTransformer):
    """Puts a call behind every statement, for arguments that the program has changed."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for field in ("body", "orelse", "finalbody"):
            if isinstance(body := getattr(node, field, None), list):
                setattr(node, field, [part for each in body for part in (each, *self._behind(each))])
        return node

    def _behind(self, statement: Any) -> list[ast.stmt]:
        simple = (ast.Expr, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Assert)
        if not isinstance(statement, simple) or not any(isinstance(node, ast.Call) for node in ast.walk(statement)):
            return []
        call = ast.Expr(ast.Call(ast.Name(SETTLE, ast.Load()), [], []))
        return [ast.fix_missing_locations(ast.copy_location(call, statement))]


def unknown_names(tree: ast.AST) -> dict[str, bool]:
    """Names that a test uses and does not define, and whether it uses attributes of them only."""
    loaded: dict[str, bool] = {}
    made = set(dir(builtins))
    of_attributes = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Load):
                loaded[node.id] = loaded.get(node.id, True) and id(node) in of_attributes
            else:
                made.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            made.add(node.name)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.alias):
            made.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            made.add(node.name)
    return {name: only for name, only in loaded.items() if name not in made}
