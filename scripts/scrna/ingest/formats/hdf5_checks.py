"""What an HDF5 file may not hold that comes from somebody else: other files, loops, memory bombs.

HDF5 follows links and storage into other files of this machine, and inflates a chunk to whatever
size it has. So the structure of a file is looked through before any of it is read.
"""

import zlib
from collections.abc import Iterator
from math import prod

import h5py

from scrna.errors import UserError

#: Bytes that a conversion may hold, as its rule asks for and the rest of the process leaves.
MEMORY = 2e9
#: Copies of a chunk at work: of data and of indices, as packed, inflated, and put in order.
_COPIES = 6
_MAX_GENES = 5_000_000
_MAX_TABLE_BYTES = 2**30  # of a column, or of row pointers, which are read whole
_MAX_TEXT = 2**20  # bytes of one string of fixed length
_MAX_INFLATED = 2**30  # of what HDF5 inflates
_SMALL = 2**20
#: How many bytes one packed byte can become, at most: of deflate, of LZF and the like.
_DEFLATE_RATIO, _OTHER_RATIO = 1032, 100
_NOT_PACKING = {
    h5py.h5z.FILTER_SHUFFLE,
    h5py.h5z.FILTER_FLETCHER32,
    h5py.h5z.FILTER_NBIT,
    h5py.h5z.FILTER_SCALEOFFSET,
}
_REWRITE = "rewrite it (anndata.read_h5ad, then write_h5ad) if you trust it, and use that"
#: Parts of an AnnData file that are not read.
_UNREAD = ("/uns", "/obsm", "/varm", "/obsp", "/varp")


def check_links(file: h5py.File) -> None:
    """Refuse a file that reaches into other files, or that has loops.

    Parameters
    ----------
    file
        The file, open.

    Raises
    ------
    UserError
        For an external link, external storage, a virtual dataset, a soft link that leads nowhere,
        or groups that contain each other.
    """
    soft: list[tuple[str, str]] = []
    inside: dict[int, list[int]] = {}
    for path, group, name in _links(file, inside):
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            _refuse(file, path, f"is a link to another file, {link.filename}")
        if isinstance(link, h5py.SoftLink):
            soft.append((path, link.path))
            continue
        if isinstance(item := group[name], h5py.Dataset):
            if item.is_virtual:
                _refuse(file, path, "is a virtual dataset, made of other datasets or files")
            if item.external:
                _refuse(file, path, f"has its values in another file, {item.external[0][0]}")
    for path, target in soft:
        try:
            place = _place(file[path])
        except (KeyError, RuntimeError, OSError):
            _refuse(file, path, f"is a soft link to {target}, which leads nowhere or in a circle")
        inside[_place(file[path.rpartition("/")[0] or "/"])].append(place)
    if _has_loop(inside, _place(file)):
        _refuse(file, "/", "has groups that contain each other")


def check_sizes(file: h5py.File) -> None:
    """Refuse datasets that cannot be read within `MEMORY`, by what the file says of them.

    Parameters
    ----------
    file
        The file, open, its links checked.
    """
    is_anndata = isinstance(file.get("obs"), h5py.Group)  # of 0.7 and later: older are read whole
    for path, group, name in _links(file, {}):
        if is_anndata and path.startswith(_UNREAD):
            continue
        if isinstance(group.get(name, getlink=True), h5py.HardLink):
            dataset = group[name]
            if isinstance(dataset, h5py.Dataset) and dataset.shape:
                _check_dataset(file, path, dataset)


def packing_filters(dataset: h5py.Dataset) -> list[int]:
    """List the numbers of a dataset's filters that compress."""
    pipeline = dataset.id.get_create_plist()
    filters = [pipeline.get_filter(i)[0] for i in range(pipeline.get_nfilters())]
    return [number for number in filters if number not in _NOT_PACKING]


def _check_dataset(file: h5py.File, path: str, dataset: h5py.Dataset) -> None:
    n_bytes = dataset.size * dataset.dtype.itemsize
    size = " × ".join(f"{n:,}" for n in dataset.shape)
    if n_bytes > _SMALL and not dataset.id.get_storage_size():
        _refuse(file, path, f"is {size} values, {n_bytes / 1e9:,.1f} GB, and none was ever written")
    if dataset.dtype.itemsize > _MAX_TEXT:
        _refuse(file, path, f"has values of {dataset.dtype.itemsize / 1e6:,.1f} MB each")
    parts = path.split("/")
    is_of_genes = bool({"var", "features", "genes", "gene_names"} & set(parts[:-1] + parts[-1:]))
    if is_of_genes and dataset.shape[0] > _MAX_GENES:
        _refuse(file, path, f"has {dataset.shape[0]:,} genes, of {_MAX_GENES:,} at most")
    is_streamed = parts[-1] in ("data", "indices") or dataset.ndim > 1
    is_streamed |= h5py.check_string_dtype(dataset.dtype) is not None
    if not is_streamed and n_bytes > _MAX_TABLE_BYTES:
        _refuse(file, path, f"is {size} values, {n_bytes / 1e9:,.1f} GB, to be read at once")
    if dataset.chunks:
        _check_chunks(file, path, dataset)


def _check_chunks(file: h5py.File, path: str, dataset: h5py.Dataset) -> None:
    chunk = prod(dataset.chunks) * dataset.dtype.itemsize
    if chunk * _COPIES > MEMORY:
        _refuse(
            file,
            path,
            f"is stored in chunks of {chunk / 1e9:,.2f} GB: reading one takes some "
            f"{chunk * _COPIES / 1e9:,.1f} GB, and a conversion has {MEMORY / 1e9:.1f} GB",
        )
    packing = packing_filters(dataset)
    if len(packing) > 1:
        _refuse(file, path, "is compressed twice")
    if not packing:
        return
    is_deflate = packing[0] == h5py.h5z.FILTER_DEFLATE
    large = chunk + chunk // 100 + 1024  # packing never adds as much
    suspect = min(large, _MAX_INFLATED // (_DEFLATE_RATIO if is_deflate else _OTHER_RATIO))
    found = []
    dataset.id.chunk_iter(lambda info: found.append(info) if info.size > suspect else None)
    for info in found:
        size = f"{info.size / 1e6:,.1f} MB"
        if info.size > large:
            _refuse(file, path, f"has a chunk of {size}, for {chunk / 1e6:,.1f} MB of values")
        if not is_deflate:
            _refuse(file, path, f"has a compressed chunk of {size}, too large to be told safe")
        if not info.filter_mask and (n := _inflated_size(dataset, info, _MAX_INFLATED)) > chunk:
            what = f"inflates to {n / 1e9:,.1f} GB or more, for {chunk / 1e6:,.1f} MB of values"
            _refuse(file, path, f"has a chunk of {size} that {what}")


def _inflated_size(dataset: h5py.Dataset, info: h5py.h5d.StoreInfo, most: int) -> int:
    """Count what a chunk inflates to, a little at a time, up to a number of bytes."""
    data = dataset.id.read_direct_chunk(info.chunk_offset)[1]
    inflate, n = zlib.decompressobj(), 0
    while n <= most and not inflate.eof:
        part = inflate.decompress(data, _SMALL)
        n += len(part)
        data = inflate.unconsumed_tail
        if not part and not data:
            break
    return n


def _links(file: h5py.File, inside: dict[int, list[int]]) -> Iterator[tuple[str, h5py.Group, str]]:
    """Go through all links of a file, each group once.

    Parameters
    ----------
    file
        The file.
    inside
        Is filled with each group's place, and the places of the groups that hard links put in it.

    Yields
    ------
    Path, group and name of every link.
    """
    waiting = [("", file["/"])]
    inside[_place(file)] = []
    while waiting:
        path, group = waiting.pop()
        for name in group:
            yield f"{path}/{name}", group, name
            if isinstance(group.get(name, getlink=True), h5py.HardLink):
                item = group[name]
                if isinstance(item, h5py.Group):
                    place = _place(item)
                    inside[_place(group)].append(place)
                    if place not in inside:
                        inside[place] = []
                        waiting.append((f"{path}/{name}", item))


def _place(item: h5py.Group | h5py.Dataset) -> int:
    """Return where in its file an object lies: two names of one object have the same."""
    return h5py.h5o.get_info(item.id).addr


def _has_loop(inside: dict[int, list[int]], start: int) -> bool:
    """Tell whether a group contains itself, by way of others maybe."""
    done: set[int] = set()
    on_way: list[int] = []
    is_on_way: set[int] = set()
    waiting = [(start, False)]
    while waiting:
        place, is_end = waiting.pop()
        if is_end:
            is_on_way.discard(on_way.pop())
            done.add(place)
        elif place in is_on_way:
            return True
        elif place not in done:
            on_way.append(place)
            is_on_way.add(place)
            waiting.append((place, True))
            waiting += [(one, False) for one in inside.get(place, ())]
    return False


def _refuse(file: h5py.File, path: str, what: str) -> None:
    msg = f"{file.filename} is refused: {path} {what}; {_REWRITE}"
    raise UserError(msg)
