"""seqtk-export: writes a trained model in the format of another toolkit."""

from pathlib import Path
from typing import TYPE_CHECKING

from seqtk.cli.command import command
from seqtk.utils.errors import UserError

if TYPE_CHECKING:
    from seqtk.interop import ExportConfig


@command("seqtk-export", "seqtk.interop:ExportConfig")
def main(config: "ExportConfig") -> None:
    """Export a model to another format: seqtk-export checkpoint=PATH format=NAME [format.KEY=VALUE …] output=PATH."""
    for key in ("checkpoint", "output"):
        if not getattr(config, key):
            raise UserError(f"{key}= is not set.", "Usage: seqtk-export checkpoint=PATH format=NAME output=PATH")
    output = Path(config.output)
    if not output.absolute().parent.is_dir():
        raise UserError(f"output={output} cannot be written: there is no folder {output.parent}.")
    if output.exists() and not (output.is_file() or output.is_dir()):
        raise UserError(f"output={output} is not a regular file.", "An archive cannot be written to a device or pipe.")
    from seqtk.checkpoint import trained_model
    from seqtk.cli.loading import check_not_input
    from seqtk.interop import chosen, exporters

    check_not_input(output, checkpoint=config.checkpoint)
    exporter = chosen(exporters, config.format)
    exporter.write(trained_model.load(config.checkpoint), output)
    print(output)


if __name__ == "__main__":
    main()
