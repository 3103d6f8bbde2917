"""seqtk-import: converts a model of another toolkit into a model file."""

from pathlib import Path
from typing import TYPE_CHECKING

from seqtk.cli.command import command
from seqtk.utils.errors import UserError

if TYPE_CHECKING:
    from seqtk.interop import Importer, ImportModelConfig


@command("seqtk-import", "seqtk.interop:ImportModelConfig")
def main(config: "ImportModelConfig") -> None:
    """Import a model from another format: seqtk-import checkpoint=PATH format=NAME [format.KEY=VALUE …] output=FILE."""
    if not config.checkpoint:
        raise UserError("checkpoint= is not set.", "Usage: seqtk-import checkpoint=PATH format=NAME output=FILE")
    from seqtk.interop import chosen, importers

    import_model(chosen(importers, config.format), Path(config.checkpoint), output=config.output)


def import_model(importer: "Importer", checkpoint: Path, *, output: str) -> None:
    """Reads the model at `checkpoint`, writes it to the model file `output`, and prints a summary."""
    from seqtk.checkpoint import model_file
    from seqtk.cli.loading import check_output

    if output:
        check_output(Path(output), checkpoint=str(checkpoint))
    contents = importer.read(checkpoint)
    if not output:
        raise UserError("output= is not set.", "Set it to the model file to write.")
    model_file.write(output, contents)
    parameters = sum(tensor.numel() for tensor in contents.tensors.values())
    names = [contents.assets[name] for name in ("source.lang", "target.lang") if name in contents.assets]
    task, model = contents.config["task"]["kind"], contents.config["model"]["kind"]
    about = " ".join([*(["-".join(names)] if names else []), f"{task} model ({model})"])
    print(f"{about} of {parameters:,} parameters, trained for {contents.info.get('update', 0):,} updates")
    print(output)


if __name__ == "__main__":
    main()
