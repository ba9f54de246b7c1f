"""What a finetune of our trainer has come to, in words: the LoRA, how to load it, and how to bring it to BFL."""

import json
import math
import re
import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from bfl_mcp.contract import BFL_BASE_MODELS, FILE_PATH, MAX_TRIGGER_WORD_CHARACTERS, TrainerDetails
from bfl_mcp.errors import quote_foreign, quoted

if TYPE_CHECKING:
    from bfl_mcp.client import BFLClient

LORA_FILE: Final = "lora.safetensors"

_NAME_CHARACTERS: Final = 100
_PATH_CHARACTERS: Final = 280
"""A line longer than this would be shown with its end missing, and a command without its end is none."""
_CAPTION_CHARACTERS: Final = 120
_CAPTIONS_SHOWN: Final = 3
_SAMPLES_SHOWN: Final = 6
_SAMPLE: Final = re.compile(r"samples/\d{1,4}-(before|after)\.png", re.ASCII)


class Trained:
    """A ready finetune of our trainer. All its texts are foreign: any server may answer like it."""

    def __init__(self, client: "BFLClient", finetune_id: str, details: Mapping[str, Any]) -> None:
        self._client = client
        self._finetune_id = finetune_id
        self._told = TrainerDetails.model_validate(details)
        self._rank = details.get("lora_rank")
        word = details.get("trigger_word")
        self._word = quote_foreign(word, MAX_TRIGGER_WORD_CHARACTERS) if isinstance(word, str) else ""
        comment = details.get("finetune_comment")
        self._comment = comment if isinstance(comment, str) else ""

    @property
    def is_there(self) -> bool:
        """Whether it says where a LoRA lies, on this machine or at the trainer's address."""
        return self._path is not None or (self._told.lora or "").startswith(f"{FILE_PATH}?")

    @property
    def download(self) -> str | None:
        """A command that fetches the LoRA with the key, without showing the key; None where it lies here already."""
        if self._path is not None:
            return None
        url = self._client.file_url(self._finetune_id, LORA_FILE)
        command = f'curl --fail --header "x-key: $BFL_API_KEY" --output {self._saved_as} {shlex.quote(url)}'
        return command if len(command) <= _PATH_CHARACTERS else None

    @property
    def load(self) -> list[str]:
        """Three lines of Python that make a picture with it. The texts in them are literals, whatever they say."""
        model = json.dumps(quote_foreign(self._told.base_model or "", _NAME_CHARACTERS), ensure_ascii=False)
        lora = json.dumps(self._path or self._saved_as, ensure_ascii=False)
        prompt = json.dumps(f"a picture of {self._word}".rstrip(), ensure_ascii=False)
        return [
            f'pipe = diffusers.Flux2KleinPipeline.from_pretrained({model}, torch_dtype=torch.bfloat16).to("cuda")',
            f"pipe.load_lora_weights({lora})",
            f"image = pipe(prompt={prompt}).images[0]",
        ]

    @property
    def samples(self) -> list[str]:
        """The same prompts before and after: paths on this machine, or names at the trainer."""
        names = sorted(filter(_SAMPLE.fullmatch, self._told.files), key=_before_first)[:_SAMPLES_SHOWN]
        if self._client.is_in_process:
            return [quote_foreign(self._told.files[name], _PATH_CHARACTERS) for name in names]
        return names

    def summary(self) -> str:
        """What was trained, how it went, and with which captions."""
        told = self._told
        rank = f" of rank {self._rank}" if self._rank in (16, 32) else ""
        model = f" for {quoted(told.base_model, _NAME_CHARACTERS)}" if told.base_model else ""
        word = f", trigger word {quoted(self._word, MAX_TRIGGER_WORD_CHARACTERS)}" if self._word else ""
        where = f", in {quoted(self._path)}" if self._path is not None else ""
        parts = [f"It is a LoRA{rank}{model}{word}{where}.", self._losses(), self._captions()]
        return " ".join(part for part in parts if part)

    def how_to_use(self) -> str:
        """What to do with it: look, load, upload."""
        steps = []
        if self.download is not None:
            steps.append(
                f"fetch {self._saved_as} with the command under download, where BFL_API_KEY holds the trainer's key"
            )
        if self.samples:
            steps.append("compare the samples before and after")
        steps.append("load it as under load (torch, diffusers, a GPU)")
        beside = "README.md (a card of it), loss.png and captions.json"
        if self.download is not None:
            beside += ", and the samples, are fetched by the same command with their names for name and --output"
        else:
            beside += " lie beside it"
        word = quoted(self._word, MAX_TRIGGER_WORD_CHARACTERS)
        return (
            f"Tell the person where it is. They can {_listed(steps)}; {beside}. To use it at BFL: in BFL's dashboard, "
            f"Customization → Finetunes → + Add Finetune, with Name {self._slug}, Base Model {self._base_model}, "
            f"Precision FP8, Trigger Phrase {word}, and the file "
            f"{self._saved_as if self.download is not None else LORA_FILE}."
        )

    @property
    def _path(self) -> str | None:
        """Where the LoRA lies on this machine: only the trainer inside this server can know that."""
        path = self._told.lora
        if path is None or not self._client.is_in_process or not PurePath(path).is_absolute():
            return None
        return path if path == quote_foreign(path, _PATH_CHARACTERS) else None

    @property
    def _base_model(self) -> str:
        name = (self._told.base_model or "").lower()
        return next((known for known in BFL_BASE_MODELS if known.removeprefix("flux-2-") in name), "as trained")

    @property
    def _slug(self) -> str:
        """A name as BFL's form takes it."""
        slug = re.sub(r"[^a-z0-9_]+", "-", self._comment.lower()).strip("-")[:40].rstrip("-")
        return slug or "my-finetune"

    @property
    def _saved_as(self) -> str:
        """The file that a download makes. The next finetune's has another name, so that neither is written over."""
        return f"{self._slug}-{re.sub('[^0-9a-z]', '', self._finetune_id.lower())[:8]}.safetensors"

    def _losses(self) -> str:
        told = self._told
        text = ""
        if told.loss_first is not None and told.loss_last is not None:
            text = f"The loss went from {told.loss_first:.3g} to {told.loss_last:.3g}."
        if told.kept_energy is not None and 0 <= told.kept_energy <= 1:
            # Rounded down: 99.96 % is not all of it.
            text += f" It holds {math.floor(told.kept_energy * 1000) / 10:g}% of what full training changed."
        return text.strip()

    def _captions(self) -> str:
        used = self._told.captions_used
        if used.count is None or used.count < 0:
            return ""
        written = f", {used.written} of them written by the trainer" if used.written and used.written > 0 else ""
        shown = "; ".join(quoted(text, _CAPTION_CHARACTERS) for text in used.first[:_CAPTIONS_SHOWN])
        return f"Captions: {used.count}{written}" + (f", such as {shown}." if shown else ".")


def _before_first(name: str) -> tuple[str, bool]:
    number, when = name.split("-")
    return number, when.startswith("after")


def _listed(steps: list[str]) -> str:
    return f"{', '.join(steps[:-1])} and {steps[-1]}" if len(steps) > 1 else steps[0]
