"""Find the metrics and labels in a PromQL expression, without a parser."""

import re

KEYWORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "offset", "bool"}
FUNCTIONS = {"absent", "count", "histogram_quantile", "increase", "max", "min", "rate", "sum", "vector"}
ADDED_BY_PROMETHEUS = {"job", "instance"}


def metrics_in(expression: str) -> set[str]:
    """Return the metrics: every name that is not a function, keyword or label."""
    rest = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^]]*\]', " ", _without_strings(expression))
    rest = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", " ", rest)
    return set(re.findall(r"(?<![\w.])[a-zA-Z_:][\w:]*", rest)) - FUNCTIONS - KEYWORDS


def labels_in(expression: str) -> set[str]:
    """Return the labels in selectors and groupings, without those that Prometheus adds."""
    bare = _without_strings(expression)
    compared = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", " ".join(re.findall(r"\{([^}]*)\}", bare)))
    grouped = re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", bare)
    names = {name.strip() for group in grouped for name in group.split(",")} | set(compared)
    return names - ADDED_BY_PROMETHEUS


def is_balanced(expression: str) -> bool:
    opened = []
    pairs = {")": "(", "]": "[", "}": "{"}
    for character in _without_strings(expression):
        if character in pairs.values():
            opened.append(character)
        elif character in pairs and (not opened or opened.pop() != pairs[character]):
            return False
    return not opened


def _without_strings(expression: str) -> str:
    return re.sub(r'"[^"]*"', '""', expression)
