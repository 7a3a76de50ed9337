"""The attributes by which AnnData marks each kind of element, in HDF5 and zarr."""

_VERSIONS = {
    "anndata": "0.1.0",
    "array": "0.2.0",
    "categorical": "0.2.0",
    "csr_matrix": "0.1.0",
    "dataframe": "0.2.0",
    "dict": "0.1.0",
    "numeric-scalar": "0.2.0",
    "string": "0.2.0",
    "string-array": "0.2.0",
}


def encoding(kind: str, **attributes) -> dict:
    """Return the attributes by which AnnData knows an element that we write.

    Parameters
    ----------
    kind
        AnnData's name for it.
    **attributes
        Those that only this kind has: ``shape`` of a matrix, ``ordered`` of categories.
    """
    return {"encoding-type": kind, "encoding-version": _VERSIONS[kind], **attributes}
