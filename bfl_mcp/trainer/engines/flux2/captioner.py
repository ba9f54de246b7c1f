"""Captions written by a local vision-language model, with a prompt for what the pictures are to teach."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch

from bfl_mcp.contract import Mode
from bfl_mcp.errors import quote_foreign, quoted
from bfl_mcp.trainer.engines import TrainingError
from bfl_mcp.trainer.engines.flux2.device import Hardware, release_memory
from bfl_mcp.trainer.engines.flux2.pictures import open_picture
from bfl_mcp.trainer.engines.flux2.store import write_text

# What is to be learned must not be in the caption: what the words already say, the trigger word does not take up.
PROMPTS: Final[dict[Mode, str]] = {
    "general": "Describe this picture for someone who must paint it: subject, setting, light, colours, style.",
    "character": (
        "Describe this picture, but call the main character only 'the character': say nothing about face, hair, body "
        "or species. Describe pose, expression, what is worn if it could be changed, setting, light and style."
    ),
    "product": (
        "Describe this picture, but call the main product only 'the product': say nothing about its shape, colour, "
        "material or print. Describe how it is placed, what is around it, setting, light and style."
    ),
    "style": (
        "Describe what this picture shows: subjects, their actions and the setting. Say nothing about the style, the "
        "medium, the technique, the colours or the mood."
    ),
}
_ENDING: Final = " Answer with the description only, one paragraph, at most 80 words."
_MAX_NEW_TOKENS: Final = 160
_LONGER_SIDE_PX: Final = 768


def write_captions(
    find_captioner: Callable[[], Path],
    pictures: Sequence[Path],
    mode: Mode,
    folder: Path,
    hardware: Hardware,
    tell: Callable[[int, int], None],
) -> None:
    """Write `001.txt` into `folder` for each picture that has none there yet, one whole file after the other.

    `find_captioner` is asked only where a picture is left to describe.

    Raises:
        TrainingError: The captioner cannot be used.
    """
    missing = [picture for picture in pictures if not (folder / f"{picture.stem}.txt").exists()]
    if not missing:
        return
    processor, model = _open(find_captioner(), hardware)
    done = len(pictures) - len(missing)
    tell(done, len(pictures))
    folder.mkdir(exist_ok=True)
    for picture in missing:
        write_text(folder / f"{picture.stem}.txt", _describe(processor, model, picture, PROMPTS[mode] + _ENDING))
        done += 1
        tell(done, len(pictures))
    del processor, model
    release_memory()


@torch.no_grad()
def _describe(processor: Any, model: Any, picture: Path, prompt: str) -> str:
    shown = open_picture(picture, _LONGER_SIDE_PX)
    message = {"role": "user", "content": [{"type": "image", "image": shown}, {"type": "text", "text": prompt}]}
    inputs = processor.apply_chat_template(
        [message], tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    ).to(model.device, model.dtype)
    # The most likely words: the same picture has the same caption tomorrow.
    tokens = model.generate(**inputs, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)
    answer = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
    return " ".join(answer.split())


def _open(folder: Path, hardware: Hardware) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText

    try:
        processor = _open_processor(folder)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=hardware.dtype)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise TrainingError(
            f"The captioner {quoted(folder)} cannot be used: {quote_foreign(error, 200)}. Name another in "
            "BFL_TRAINER_CAPTIONER, write the captions yourself, or start with captioning=false."
        ) from None
    return processor, model.to(hardware.device).eval()


def _open_processor(folder: Path) -> Any:
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(folder)
    except (ImportError, ValueError):
        # transformers opens the part that reads videos too, which alone needs torchvision.
        if find_spec("torchvision") is not None:
            raise
        return _open_without_video(folder)


def _open_without_video(folder: Path) -> Any:
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    known = PROCESSOR_MAPPING[type(AutoConfig.from_pretrained(folder))]

    class Pictures(known):  # type: ignore[misc, valid-type]
        """The same processor, content without the part that reads videos."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Repositories keep the chat format in a file of its own, or with the tokenizer, or both.
    settings, _ = Pictures.get_processor_dict(folder)
    return Pictures(
        image_processor=AutoImageProcessor.from_pretrained(folder),
        tokenizer=tokenizer,
        video_processor=None,
        chat_template=settings.get("chat_template") or tokenizer.chat_template,
    )
