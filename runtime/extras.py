"""The one sentence that says that a library of an extra is not there, and what to do, in an image as well."""


def not_installed(library: str, extra: str) -> str:
    """In one line; podsvid's image has no pip, so it says where the way of images is written."""
    return (
        f"{library} is not installed: pip install 'podsvid[{extra}]'; where podsvid's image runs, which has no pip, "
        "build one on top of it (docs/pkcs11.md, An image with more libraries)"
    )
