"""Static profiles of compiled objects, and what IR2Perf is told of two of them."""

import pytest

from services.inlining.engine import compile_module
from services.inlining.sizes import read_image
from services.inlining.source import to_bitcode
from services.inlining.speed import Facts, inputs
from services.inlining.static_profile import MAP, profile
from tests.unit.inlining.making import SCALED

LOOPS = """
int outside(int);
__attribute__((noinline)) static int inner(int n) { return n > 9 ? n * n : outside(n); }
int once(int n) { return inner(n) + 1; }
int often(int n) { int sum = 0; for (int i = 0; i < n; i++) sum += inner(i); return sum; }
int away(int n) { int sum = 0; for (int i = 0; i < n; i++) sum += outside(i); return sum; }
"""


def built(source, **how):
    return compile_module(to_bitcode(source, level="3"), level="3", profiled=True, **how)


def test_a_loop_is_expected_to_run_more_often():
    works = profile(built(LOOPS).object)
    assert works.keys() == {"inner", "once", "often", "away"}
    assert works["once"].calls == pytest.approx(1)
    assert 5 < works["often"].calls < 100
    assert works["away"].calls == works["inner"].calls == 0  # of another object
    assert works["often"].bytes > works["once"].bytes > 0


def test_what_is_inlined_is_called_no_more():
    stock, all_ = built(SCALED), built(SCALED, decide=lambda _: 1)
    assert inputs(Facts.of([stock]), Facts.of([all_])) == pytest.approx(-1)
    assert not inputs(Facts.of([stock]), Facts.of([stock])).any()


def test_a_profile_changes_no_code():
    bitcode = to_bitcode(SCALED, level="3")
    plain, profiled = compile_module(bitcode, level="3"), compile_module(bitcode, level="3", profiled=True)
    assert (plain.text, plain.functions) == (profiled.text, profiled.functions)
    assert profile(plain.object) == {}


@pytest.mark.parametrize("damage", ["version", "features", "cut"])
def test_another_form_is_refused(damage):
    image = bytearray(built(LOOPS).object)
    [start] = [one.offset for one in read_image(bytes(image)).sections if one.kind == MAP]
    if damage == "version":
        image[start] = 9
    elif damage == "features":
        image[start + 1] |= 8
    else:
        image[start + 11] = 255  # as many blocks as there are not
        image[start + 12] = 127
    with pytest.raises(ValueError, match="map of basic blocks"):
        profile(bytes(image))


def test_no_objects_have_no_change():
    assert not inputs(Facts({}), Facts.of([built(LOOPS)])).any()
