"""What a layer is unpacked onto while its snapshot has no parent."""

from __future__ import annotations

import pytest

from moored.kernel.errors import Unknown
from moored.kernel.ports.mounts import Mount
from moored.plugins.transfer.uppers import on_top, upper_only


def bind(id_: int) -> Mount:
    return Mount(type="bind", source=f"/s/{id_}/fs", options=("rw", "rbind"))


def overlay(*options: str) -> Mount:
    return Mount(type="overlay", source="overlay", options=options)


def test_bind_mount_becomes_an_overlay_on_a_first_layer() -> None:
    assert on_top([bind(2)], [bind(1)]) == [overlay("workdir=/s/2/work", "upperdir=/s/2/fs", "lowerdir=/s/1/fs")]


def test_each_further_one_has_all_below_it_nearest_first() -> None:
    second = on_top([bind(2)], [bind(1)])

    (third,) = on_top([bind(3)], second)

    assert third.options[-1] == "lowerdir=/s/2/fs:/s/1/fs"


def test_one_that_has_its_parent_is_below_with_all_its_folders() -> None:
    prepared = overlay("index=off", "workdir=/s/5/work", "upperdir=/s/5/fs", "lowerdir=/s/4/fs:/s/1/fs")

    (found,) = on_top([bind(6)], [prepared])

    assert found.options[-1] == "lowerdir=/s/5/fs:/s/4/fs:/s/1/fs"


@pytest.mark.parametrize(
    ("mounts", "below"),
    [
        ([overlay("lowerdir=/a:/b")], [bind(1)]),
        ([bind(2)], [overlay("lowerdir=/a:/b")]),
        ([bind(2)], [bind(1), bind(3)]),
        ([Mount(type="bind", source="/s/2", options=("rw",))], [bind(1)]),
    ],
    ids=["no bind mount", "view", "two mounts", "another snapshotter's"],
)
def test_mounts_of_another_form_are_refused(mounts: list[Mount], below: list[Mount]) -> None:
    with pytest.raises(Unknown, match="another form"):
        on_top(mounts, below)


def test_options_that_are_not_of_a_bind_mount_stay() -> None:
    mapped = Mount(type="bind", source="/s/2/fs", options=("uidmap=0:1000:1", "rw", "rbind"))

    assert upper_only([mapped]) == [overlay("uidmap=0:1000:1", "upperdir=/s/2/fs")]
