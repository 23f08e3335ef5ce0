"""YAML as plans and configurations need it: nothing that is written is dropped, and no line stands for many."""

import re
from collections.abc import Hashable

import yaml

DEEPEST = 50  # PyYAML needs time as the cube of the depth
_UNUSABLE = re.compile("[\0\ud800-\udfff]")  # in no name of a file, and a half of a pair is in no text


class Loader(yaml.SafeLoader):
    """yaml.SafeLoader that refuses a key that is given twice, aliases, and values that no option can have.

    Raises ValueError with the line. Aliases are refused because a few lines of them stand for gigabytes. `4:1` is text,
    not the number 241 to the base 60 that YAML 1.1 makes of it.
    """

    depth = 0  # of the node that is read

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise ValueError(f"line {event.start_mark.line + 1} has the alias *{event.anchor[:40]}: "
                             "write out what it stands for")
        self.depth += 1
        if self.depth > DEEPEST:
            raise ValueError("it is nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node, deep=False):
        value = super().construct_object(node, deep)
        line = node.start_mark.line + 1
        if isinstance(value, str) and _UNUSABLE.search(value):
            raise ValueError(f"the text in line {line} has a character that no name can have")
        if isinstance(value, int) and abs(value) >= 2 ** 63:
            raise ValueError(f"the number in line {line} is too large")
        return value

    def construct_mapping(self, node, deep=False):
        lines = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if isinstance(key, Hashable):  # where it is not, SafeLoader says so
                if key in lines:
                    raise ValueError(f"the key {key!r} is given twice, in lines {lines[key]} and {line}")
                lines[key] = line
        return super().construct_mapping(node, deep)

    def resolve(self, kind, value, implicit):
        tag = super().resolve(kind, value, implicit)
        is_base_60 = tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float") and ":" in value
        return "tag:yaml.org,2002:str" if is_base_60 else tag
