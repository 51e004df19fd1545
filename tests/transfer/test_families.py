"""Families of names, whatever the names are."""

import re

from transferseg.transfer.families import families

ONE = {"": (2,)}


def test_no_name_is_taken_for_another():
    names = ["a.01", "a.1", "a.2", "b." + "1" * 5000, "{}.1", "{}.2"]
    found = families(dict.fromkeys(names, ONE), literal=0)
    assert sorted(name for family in found for name in family.names) == sorted(names)


def test_braces_in_a_name_stand_for_no_number():
    theirs = families({"{}{}.1": ONE, "{}{}.2": ONE}, literal=0)[0]
    ours = families({"layer1": ONE, "layer2": ONE}, literal=0)[0]
    ((pattern, replacement),) = theirs.rules_to(ours, cut=False)
    assert re.match(pattern, "12.1") is None
    assert re.match(pattern, "{}{}.1").expand(replacement) == "layer1"
    assert (theirs.text, theirs.words) == ("{}{}.*", ["{}{}"])
