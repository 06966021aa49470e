"""`dinoeval embed` and `dinoeval cache`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from dinoeval.errors import ConfigError
from dinoeval.files import check_writable, expand, write_whole


def embed(
    images: Annotated[tuple[str, ...], tyro.conf.Positional],
    /,
    out: str,
    arch: str | None = None,
    weights: str | None = None,
    readout: str = "cls",
    key: Literal["teacher", "student"] = "teacher",
    device: str = "auto",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    transform: str = "auto",
    bad_images: Literal["error", "skip"] = "error",
    batch_size: int | None = None,
    workers: int | None = None,
    cache: str | None = None,
) -> int:
    """Write the features of images, raw and float32, to a .npz (`features`, `paths`) or .npy file.

    Args:
        images: Files, folders (searched deeply), or one CSV table with a column path.
        out: F.npz or F.npy.
        arch: As for `dinoeval knn`.
        weights: A file, a name that `dinoeval models` lists, or `random`.
        readout: cls, lastN (as last4), clsavg, gem, patches.
        key: Which network of a full checkpoint.
        device: auto, cpu, cuda, mps.
        precision: Of the network's layers.
        transform: auto, or dino:RESIZE/CROP.
        bad_images: What to do about images that cannot be read.
        batch_size: Images a forward pass.
        workers: Processes that decode images.
        cache: Folder of the feature cache.
    """
    import numpy as np

    from dinoeval import distributed
    from dinoeval.data.opening import open_images
    from dinoeval.features.readout import parse_readout
    from dinoeval.session import Session, SessionConfig

    target = expand(out)
    if target.suffix not in (".npz", ".npy"):
        raise ConfigError(f"--out {out}: the name must end in .npz or .npy")
    check_writable(out)
    chosen = parse_readout(readout)
    opened = open_images(images[0] if len(images) == 1 else images)
    session = Session(
        SessionConfig(
            arch=arch, weights=weights, key=key, device=device, precision=precision, transform=transform, bad_images=bad_images,
            batch_size=batch_size, workers=workers, cache=cache,
        )
    )  # fmt: skip
    features = session.features(opened, chosen)
    if distributed.rank() > 0:
        return 0
    rows = features.numpy()
    paths = np.array(features.images.paths)

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, features=rows, paths=paths) if target.suffix == ".npz" else np.save(file, rows)

    write_whole(target, write)
    print(f"{' x '.join(map(str, rows.shape))} float32, readout {chosen.id}, written to {target}")
    return 0


def cache_list(cache: str | None = None) -> int:
    """List the entries of the feature cache, and the runs of linear probes and `davis` that lie beside them.

    Args:
        cache: Its folder; by default $DINOEVAL_CACHE, or one of the user's cache.
    """
    from dinoeval.features.cache import FeatureCache

    store = FeatureCache(cache)
    total = 0
    for key, entry in store.entries():
        if isinstance(entry, str):
            print(f"{key}  damaged: {entry}")
            continue
        total += entry.num_bytes
        about, recipe = entry.manifest["about"], entry.manifest["recipe"]
        shape = " x ".join(map(str, (entry.num_rows, *entry.row_shape)))
        print(
            f"{key}  {shape:<14} {entry.num_bytes / 1e6:9.1f} MB  {about['arch']} {recipe['readout']} {recipe['precision']} "
            f"{recipe['transform']}  {about['weights']}  {about['data']} ({about['split']})"
        )
    for folder in store.partials():
        print(f"{folder.name.removesuffix('.partial')}  unfinished: the same command goes on with it")
    for folder, finished in store.runs():
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        total += size
        print(f"{folder.name}  {size / 1e6:.1f} MB  {'finished run' if finished else 'unfinished run: the same command goes on with it'}")
    print(f"{total / 1e6:.1f} MB in {store.root}")
    return 0


def cache_verify(cache: str | None = None) -> int:
    """Check every byte of the feature cache; exits 1 where an entry is damaged.

    Args:
        cache: Its folder; by default $DINOEVAL_CACHE, or one of the user's cache.
    """
    from dinoeval.features.cache import FeatureCache

    damaged = 0
    for key, entry in FeatureCache(cache).entries():
        fault = entry if isinstance(entry, str) else entry.fault()
        damaged += fault is not None
        print(f"{key}  {'damaged: ' + fault if fault else 'whole'}")
    return 1 if damaged else 0


def cache_prune(
    keys: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    /,
    everything: bool = False,
    runs: bool = False,
    cache: str | None = None,
) -> int:
    """Delete unfinished and damaged entries; and those that are named.

    Args:
        keys: Entries and runs to delete too, by name or the beginning of one.
        everything: Delete all entries.
        runs: Delete the finished runs: heads of linear probes, masks of `davis`.
        cache: The cache's folder; by default $DINOEVAL_CACHE, or one of the user's cache.
    """
    from dinoeval.features.cache import FeatureCache
    from dinoeval.features.partial import delete

    store = FeatureCache(cache)
    entries, ran = list(store.entries()), store.runs()
    names = [*(key for key, _ in entries), *(folder.name for folder, _ in ran)]
    strangers = [asked for asked in keys if not any(name.startswith(asked) for name in names)]
    if strangers:
        raise ConfigError(f"no entry {', '.join(strangers)} in {store.root}; see `dinoeval cache list`")
    wanted = [key for key, _ in entries if everything or key.startswith(tuple(keys))]
    for folder in [*store.partials(), *(store.root / key for key, _ in entries)]:
        if said := store.remove(folder, only_if_damaged=not (folder.suffix or folder.name in wanted)):
            print(said)
    for folder, finished in ran:
        if (runs and finished) or folder.name.startswith(tuple(keys)):
            delete(folder)
            print(f"deleted {folder.name}")
    return 0


def cache_path(cache: str | None = None) -> int:
    """Print where the feature cache lies.

    Args:
        cache: Another folder than $DINOEVAL_CACHE or the user's cache.
    """
    from dinoeval.features.cache import FeatureCache

    print(FeatureCache(cache).root)
    return 0
