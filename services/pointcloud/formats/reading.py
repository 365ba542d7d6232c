"""A file's bytes → its geometry, by what the bytes are and not by what they are called."""

from __future__ import annotations

from services.pointcloud.formats import glb, las, npy, obj, off, pcd, ply, stl, xyz
from services.pointcloud.formats.geometry import Geometry, Refused, check

READERS = {
    "ply": ply.read,
    "pcd": pcd.read,
    "glb": glb.read,
    "las": las.read,
    "npy": npy.read,
    "off": off.read,
    "stl": stl.read,
    "obj": obj.read,
    "xyz": xyz.read,
}
FORMATS = tuple(READERS)
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive (.npz, .3mf, .usdz); send the file inside"),
    (b"\x1f\x8b", "gzip; send it unpacked"),
    (b"DRACO", "Draco"),
    (b"solid", "an STL text without a facet"),
)


def recognise(data: bytes) -> str:
    """The format, one of FORMATS; raises Refused for an empty file or one of no format that is read."""
    head = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head:
        raise Refused("empty", "The file has no bytes.")
    first = head.split(b"\n", 1)[0].strip()
    if first == b"ply":
        return "ply"
    if head.startswith(glb.MAGIC):
        return "glb"
    if head.startswith(b"LASF"):
        return "las"
    if head.startswith(npy.MAGIC):
        return "npy"
    if ((b"# .PCD" in head[:64] or head.startswith(b"VERSION")) and b"FIELDS" in head) or b"\nDATA " in head:
        return "pcd"
    if off.begins(head):
        return "off"
    if stl.is_ascii(data) or stl.looks_binary(data):
        return "stl"
    if obj.looks_like(data):
        return "obj"
    if xyz.looks_like(data):
        return "xyz"
    foreign = next((name for magic, name in _FOREIGN if head.startswith(magic)), None)
    if foreign is None and head.startswith((b"{", b"[")):
        foreign = "JSON; a glTF scene is read as .glb"
    raise Refused("unknown", f"The bytes are {foreign}." if foreign else f"The bytes are none of {', '.join(FORMATS)}.")


def parse(data: bytes, *, drop: bool = False, seed: int = 0) -> tuple[str, Geometry]:
    """Format and checked geometry of a file; raises Refused. `drop` leaves points of a cloud out that are not finite;
    `seed` chooses among the points of a LAS file that has more than are held in memory."""
    form = recognise(data)
    geometry = las.read(data, seed) if form == "las" else READERS[form](data)
    return form, check(geometry, drop)
