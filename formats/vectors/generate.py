"""Makes the test vectors, and never changes one: ``python formats/vectors/generate.py [--check] [--models DIR]``.

Without arguments it writes the cases that are not there yet and adds them to ``manifest.json``. A case that would come
out otherwise than it stands in the manifest is an error, and so is one that is no longer made. ``--check`` writes
nothing and fails where something is missing. ``--models DIR`` writes the models as safetensors files, for readers in
other languages. Needs numpy, google_crc32c and this package; neither torch nor constriction.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from vector_containers import faulty_chunks, metadata, valid_chunks
from vector_models import CHANNELS, MODELS, VectorModel
from vector_payloads import Case, faulty_payloads, model, valid_payloads

FOLDER: Final = Path(__file__).resolve().parent
MANIFEST: Final = FOLDER / "manifest.json"


def cases() -> Iterator[Case]:
    """All of them. Add to the end of a generator; never change what one makes."""
    yield from valid_payloads()
    yield from faulty_payloads()
    yield from valid_chunks()
    yield from faulty_chunks()
    yield from metadata()


# --- the manifest


def model_entry(m: VectorModel) -> dict[str, Any]:
    """A model's header and the hashes of its tensors, little-endian, in C order."""
    arrays = {f"integer.{k}": v for k, v in m.tensors.items()}
    for name, t in (("y", m.y_table), ("z", m.z_table)):
        arrays |= {f"tables.{name}.{k}": getattr(t, k) for k in ("cdf", "length", "offset")}
    tensors = {
        k: {
            "dtype": str(v.dtype),
            "shape": list(v.shape),
            "sha256": hashlib.sha256(v.astype(v.dtype.newbyteorder("<")).tobytes()).hexdigest(),
        }
        for k, v in sorted(arrays.items())
    }
    channels = {"y_channels": CHANNELS[m.name], "z_channels": len(m.program.z_median)}
    return {"name": m.name, "stride": m.stride} | channels | {"integer": m.header, "tensors": tensors}


def save_models(folder: Path) -> None:
    """Every model as ``NAME.safetensors``: the tensors of a model file that decide symbols, and the header."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        m = model(name)
        arrays = {f"integer.{k}": np.ascontiguousarray(v) for k, v in m.tensors.items()}
        for prefix, t in (("y", m.y_table), ("z", m.z_table)):
            arrays |= {f"tables.{prefix}.{k}": np.ascontiguousarray(getattr(t, k)) for k in ("cdf", "length", "offset")}
        header = json.dumps({"version": 1, "alias": f"vectors-{name}", "integer": m.header})
        save_file(arrays, folder / f"{name}.safetensors", metadata={"tilecodec": header})


def main(argv: Sequence[str] | None = None) -> int:
    """Writes, or checks, the vectors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where something differs or lacks")
    parser.add_argument("--models", type=Path, metavar="DIR", help="write the models here, and nothing else")
    args = parser.parse_args(argv)
    if args.models is not None:
        save_models(args.models)
        return 0
    old = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else {"models": [], "cases": []}
    new = {"models": [model_entry(model(name)) for name in MODELS], "cases": [c.entry() for c in cases()]}
    faults, fresh = [], []
    for part in ("models", "cases"):
        made = {entry["name"]: entry for entry in new[part]}
        kept = {entry["name"]: entry for entry in old[part]}
        if len(made) != len(new[part]):
            faults.append(f"two of the {part} have one name")
        faults += [f"{name} is no longer made" for name in kept if name not in made]
        faults += [f"{name} would change" for name in kept if name in made and made[name] != kept[name]]
        fresh += [name for name in made if name not in kept]
        old[part] += [entry for name, entry in made.items() if name not in kept]
    for case in cases():
        path = FOLDER / case.name
        if path.exists() and path.read_bytes() != case.data:
            faults.append(f"{case.name} is not the file that was made")
        if case.name not in fresh and not path.exists():
            faults.append(f"{case.name} is gone")
    if args.check:
        faults += [f"{name} is not written yet" for name in fresh]
        known = {entry["name"] for entry in old["cases"]}
        files = [p for part in ("valid", "faulty") for p in (FOLDER / part).rglob("*") if p.is_file()]
        on_disk = {p.relative_to(FOLDER).as_posix() for p in files}
        faults += [f"{name} is in no manifest" for name in sorted(on_disk - known)]
    if faults:
        sys.stderr.write("\n".join(faults) + "\n")
        return 1
    if not args.check:
        for case in cases():
            if case.name in fresh:
                (FOLDER / case.name).parent.mkdir(parents=True, exist_ok=True)
                (FOLDER / case.name).write_bytes(case.data)
        MANIFEST.write_text(_as_text(old))
    sys.stdout.write(f"{len(old['cases'])} vectors, {len(fresh)} of models and vectors new\n")
    return 0


def _as_text(manifest: dict[str, Any]) -> str:
    """JSON with a case, and a tensor, to a line."""
    lines = ["{", '"models": [']
    for n, m in enumerate(manifest["models"]):
        tensors = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in m["tensors"].items())
        rest = ", ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in m.items() if k != "tensors")
        lines.append(f'{{{rest}, "tensors": {{\n{tensors}\n}}}}' + ("," if n + 1 < len(manifest["models"]) else ""))
    lines += ["],", '"cases": [']
    lines += [",\n".join(json.dumps(c) for c in manifest["cases"]), "]", "}", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
