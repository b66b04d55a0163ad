"""What a PromQL expression names, found without a parser: enough to hold it to metrics that exist."""

import re

KEYWORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "offset", "bool"}
FUNCTIONS = {"absent", "count", "histogram_quantile", "increase", "max", "min", "rate", "sum", "vector"}
ADDED_BY_PROMETHEUS = {"job", "instance"}


def metrics_in(expression: str) -> set[str]:
    """The metrics, given that whatever is no function, keyword, label or number is one."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^]]*\]', " ", _without_strings(expression))
    bare = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", " ", bare)
    return set(re.findall(r"(?<![\w.])[a-zA-Z_:][\w:]*", bare)) - FUNCTIONS - KEYWORDS


def labels_in(expression: str) -> set[str]:
    """The labels that are compared or grouped by, without those that Prometheus adds itself."""
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
