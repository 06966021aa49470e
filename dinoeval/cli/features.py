"""`dinoeval embed` and `dinoeval cache`."""

from __future__ import annotations

from pathlib import Path

from dinoeval.cli.notes import print_remarks
from dinoeval.cli.options import CacheFolder
from dinoeval.errors import ConfigError, join_names
from dinoeval.files import check_writable, expand, write_whole
from dinoeval.session import Session, SessionConfig

_UNFINISHED = "unfinished; rerun the command to resume"


def embed(images: tuple[str, ...], /, *, out: str, readout: str = "cls", session: SessionConfig) -> int:
    """Write the features of images, raw and float32, to a file.

    A .npz file holds the arrays `features` (N, D) and `paths` (N,); a .npy file holds the features alone.

    Args:
        images: Files, folders (searched recursively), or one CSV table with a `path` column.
        out: Output file, F.npz or F.npy.
        readout: cls, lastN (such as last4), clsavg, gem or patches.
        session: The network and how images are read.

    Raises:
        DinoevalError: If an option, the weights or the images cannot be used.
    """
    import numpy as np

    from dinoeval import distributed
    from dinoeval.data.opening import open_images
    from dinoeval.features.readout import parse_readout

    target = expand(out)
    if target.suffix not in (".npz", ".npy"):
        raise ConfigError(f"--out {out} must end in .npz or .npy")
    check_writable(out)
    parsed = parse_readout(readout)
    opened = open_images(images[0] if len(images) == 1 else images)
    extracted = Session(session).features(opened, parsed)
    if distributed.rank() > 0:
        return 0
    features = extracted.numpy()
    paths = np.array(extracted.images.paths)

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, features=features, paths=paths) if target.suffix == ".npz" else np.save(file, features)

    write_whole(target, write)
    print_remarks(extracted.remarks, session.exif_transpose)
    print(f"{' x '.join(map(str, features.shape))} float32, readout {parsed.id}, written to {target}")
    return 0


def cache_list(cache: CacheFolder) -> int:
    """List the entries of the feature cache, and the runs stored with them.

    Linear probes and `davis` store their runs in the cache unless --out names another folder.

    Args:
        cache: The cache.
    """
    from dinoeval.features.cache import FeatureCache

    store = FeatureCache(cache.cache)
    total = 0
    for key, entry in store.entries():
        if isinstance(entry, str):
            print(f"{key}  corrupted: {entry}")
            continue
        total += entry.num_bytes
        about, recipe = entry.manifest["about"], entry.manifest["recipe"]
        shape = " x ".join(map(str, (entry.num_rows, *entry.feature_shape)))
        print(
            f"{key}  {shape:<14} {entry.num_bytes / 1e6:9.1f} MB  {about['arch']} {recipe['readout']} {recipe['precision']} "
            f"{recipe['transform']}  {about['weights']}  {about['data']} ({about['split']})"
        )
    for folder in store.partials():
        print(f"{folder.name.removesuffix('.partial')}  {_UNFINISHED}")
    for folder, finished in store.runs():
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        total += size
        print(f"{folder.name}  {size / 1e6:.1f} MB  run, {'finished' if finished else _UNFINISHED}")
    print(f"{total / 1e6:.1f} MB in {store.root}")
    return 0


def cache_verify(cache: CacheFolder) -> int:
    """Verify every byte of the feature cache.

    Exits with 1 if an entry is corrupted.

    Args:
        cache: The cache.
    """
    from dinoeval.features.cache import FeatureCache

    corrupted = 0
    for key, entry in FeatureCache(cache.cache).entries():
        error = entry if isinstance(entry, str) else entry.verify()
        corrupted += error is not None
        print(f"{key}  {f'corrupted: {error}' if error else 'intact'}")
    return 1 if corrupted else 0


def cache_prune(keys: tuple[str, ...] = (), /, *, all: bool = False, runs: bool = False, cache: CacheFolder) -> int:
    """Delete unfinished and corrupted entries, and those named by KEYS.

    Args:
        keys: Entries and runs to delete as well, by name or beginning of a name.
        all: Delete all entries, but no runs.
        runs: Delete the finished runs: heads of linear probes, masks of `davis`.
        cache: The cache.

    Raises:
        ConfigError: If no entry or run has one of the names.
    """
    from dinoeval.features.cache import FeatureCache
    from dinoeval.features.partial import delete

    store = FeatureCache(cache.cache)
    entries, stored_runs = [key for key, _ in store.entries()], store.runs()
    names = [*entries, *(folder.name for folder, _ in stored_runs)]
    if unknown := [key for key in keys if not any(name.startswith(key) for name in names)]:
        raise ConfigError(f"no entry or run {join_names(unknown)} in {store.root}: run `dinoeval cache list` for the names")
    wanted = [key for key in entries if all or key.startswith(tuple(keys))]
    for folder in [*store.partials(), *(store.root / key for key in entries)]:
        if message := store.remove(folder, only_if_corrupted=not (folder.suffix or folder.name in wanted)):
            print(message)
    for folder, finished in stored_runs:
        if (runs and finished) or folder.name.startswith(tuple(keys)):
            delete(folder)
            print(f"deleted {folder.name}")
    return 0


def cache_path(cache: CacheFolder) -> int:
    """Print the folder of the feature cache.

    Args:
        cache: The cache.
    """
    from dinoeval.features.cache import FeatureCache

    print(FeatureCache(cache.cache).root)
    return 0
