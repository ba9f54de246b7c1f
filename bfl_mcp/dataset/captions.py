"""Writes captions beside images: all of a call or none, each file as a whole, and what they replace is kept.

Nothing but the `.txt` of an image that was found is written. Blocking: run it in a thread.
"""

import stat
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bfl_mcp.contract import MAX_CAPTION_BYTES, MAX_REPLACED_CAPTION_BYTES, MAX_TRIGGER_WORD_CHARACTERS
from bfl_mcp.dataset.access import Access, OpenFolder, why
from bfl_mcp.dataset.captioned import CaptionsWritten, Mode, Outcome, tell_written
from bfl_mcp.dataset.folder import Dataset, ImageFile, read_dataset
from bfl_mcp.dataset.undo import Past, Replaced, UndoFile
from bfl_mcp.dataset.wording import decode_caption, encode_caption, has_word
from bfl_mcp.errors import ConfigError, DatasetError, quote_name, quoted

# Beyond so many faults a reader has understood.
_FAULTS_SHOWN: Final = 40
_NAMES_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class CaptionsAsked:
    """What is to be done. `captions` holds pairs of an image's name and its text, None where the mode needs none."""

    folder: str
    captions: tuple[tuple[str, str | None], ...] = ()
    mode: Mode = "set"
    trigger_word: str | None = None
    dry_run: bool = False


def write_captions(asked: CaptionsAsked, access: Access, home: Path) -> CaptionsWritten:
    """Write the captions of a folder, put a trigger word before them, or bring back what was there.

    Raises:
        DatasetError: The folder may not be read, or something in the request cannot be done; nothing was written then,
            unless it says so.
        ConfigError: What would be replaced cannot be kept under `home`; nothing was written.
    """
    word = _check_arguments(asked)
    with read_dataset(asked.folder, access) as dataset:
        undo = UndoFile(home, dataset.folder)
        with nullcontext() if asked.dry_run else undo.own():
            if not asked.dry_run:
                dataset.source.sweep()
            desk = _Desk(dataset)
            past = undo.read()
            match asked.mode:
                case "set":
                    outcome = desk.plan_texts(asked.captions)
                case "prepend_trigger":
                    outcome = desk.plan_trigger([name for name, _ in asked.captions], word)
                case _:
                    outcome = desk.plan_undo([name for name, _ in asked.captions], past)
            if not asked.dry_run:
                outcome = _carry_out(asked.mode, outcome, dataset, undo, past)
            without = desk.without_caption(outcome.changes)
            lacking = desk.lacking(word, outcome.changes) if word else ()
    return tell_written(dataset.folder, asked.mode, outcome, without, lacking, dry_run=asked.dry_run)


def _check_arguments(asked: CaptionsAsked) -> str:
    """The trigger word without what stands around it; empty without one.

    Raises:
        DatasetError: The arguments contradict each other, or one is missing.
    """
    word = (asked.trigger_word or "").strip()
    if asked.mode == "set" and not asked.captions:
        raise DatasetError("captions is empty. Nothing was written. Give a file and a text for each image.")
    if asked.mode != "set" and any(text and text.strip() for _, text in asked.captions):
        raise DatasetError(
            f"mode {asked.mode} takes no texts. Nothing was written. Give only file in captions, or use mode set to "
            "write texts."
        )
    if asked.mode == "prepend_trigger" and not word:
        raise DatasetError("trigger_word is missing. Nothing was written. Ask the person for it.")
    if len(word) > MAX_TRIGGER_WORD_CHARACTERS or any(unicodedata.category(char) in ("Cc", "Cs") for char in word):
        raise DatasetError(
            f"{quoted(word, 60)} cannot be a trigger word. Nothing was written. Give one word of at most "
            f"{MAX_TRIGGER_WORD_CHARACTERS} characters, without line breaks."
        )
    return word


class _Desk:
    """The images of one folder by their names, and their captions as they are now."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._stems: dict[str, list[ImageFile]] = defaultdict(list)
        for image in dataset.images:
            self._stems[_nfc(image.path.stem)].append(image)
        self._names = _Names(dataset)
        self._captions = _list_captions(dataset.source)

    def plan_texts(self, captions: Iterable[tuple[str, str | None]]) -> Outcome:
        """What must change so that these images have these texts."""
        faults = _Faults(self._dataset)
        changes: list[Replaced] = []
        same: list[Replaced] = []
        for stem, text in self._by_stem(captions, faults).items():
            with faults.of(self._shown(stem)):
                if text is None:
                    raise DatasetError("its text is missing; write what the picture shows")
                after = encode_caption(text)
                change = Replaced(self._images(stem), *self._current(stem), after)
                (same if _says(change.before, after) else changes).append(change)
        faults.refuse()
        return Outcome(tuple(changes), tuple(same))

    def plan_trigger(self, names: Sequence[str], word: str) -> Outcome:
        """What must change so that these captions, or all without names, hold the trigger word."""
        faults = _Faults(self._dataset)
        stems = self._by_stem([(name, None) for name in names], faults) if names else dict.fromkeys(self._stems)
        if not stems and not names:
            raise DatasetError(
                f"{quoted(self._dataset.folder)} holds no image that can be read. Nothing was written. Name a folder "
                "with images directly in it."
            )
        changes: list[Replaced] = []
        same: list[Replaced] = []
        for stem in stems:
            with faults.of(self._shown(stem)):
                caption, before = self._current(stem)
                text = "" if before is None else decode_caption(before)
                if not text:
                    continue
                after = before if has_word(text, word) else encode_caption(f"{word}, {text}")
                (same if after == before else changes).append(Replaced(self._images(stem), caption, before, after))
        faults.refuse()
        return Outcome(tuple(changes), tuple(same))

    def plan_undo(self, names: Sequence[str], past: Past) -> Outcome:
        """What must change to bring back what the last call replaced, or for named images what was there first."""
        faults = _Faults(self._dataset)
        known = past.last
        if names:
            first = {back.caption: back for back in past.first}
            known = ()
            for stem in self._by_stem([(name, None) for name in names], faults):
                with faults.of(self._shown(stem)):
                    back = first.get(self._caption_name(stem))
                    if back is None:
                        raise DatasetError("no caption of it was written by this server, so there is nothing to undo")
                    known += (back,)
            faults.refuse()
        elif not known:
            more = " To bring back what was there before earlier writes, name the images in captions."
            raise DatasetError(
                f"There is nothing to undo in {quoted(self._dataset.folder)}: the last write of captions by this "
                f"server, if there was one, was undone already.{more if past.first else ''} Nothing was written."
            )
        changes: list[Replaced] = []
        same: list[Replaced] = []
        left_alone: list[Replaced] = []
        for back in known:
            try:
                now = _read(self._dataset.source, back.caption)
            except DatasetError:
                left_alone.append(back)
                continue
            fitting = same if now == back.before else changes if now == back.after else left_alone
            fitting.append(Replaced(back.images, back.caption, back.after, back.before))
        return Outcome(tuple(changes), tuple(same), tuple(left_alone))

    def without_caption(self, changes: Sequence[Replaced]) -> tuple[str, ...]:
        """The images that have no caption once these changes are made."""
        texts = self._texts(changes)
        return tuple(image.path.name for stem, images in self._stems.items() if not texts[stem] for image in images)

    def lacking(self, word: str, changes: Sequence[Replaced]) -> tuple[str, ...]:
        """The images whose caption lacks the trigger word once these changes are made."""
        texts = self._texts(changes)
        return tuple(
            image.path.name
            for stem, images in self._stems.items()
            if (text := texts[stem]) and not has_word(text, word)
            for image in images
        )

    def _texts(self, changes: Sequence[Replaced]) -> dict[str, str | None]:
        """What each caption says once these changes are made; None where it cannot be read."""
        written = {change.caption: change.after for change in changes}
        texts: dict[str, str | None] = {}
        for stem in self._stems:
            try:
                caption = self._caption_name(stem)
                data = written[caption] if caption in written else _read(self._dataset.source, caption)
                texts[stem] = None if data is None else decode_caption(data)
            except DatasetError:
                texts[stem] = None
        return texts

    def _by_stem(self, captions: Iterable[tuple[str, str | None]], faults: "_Faults") -> dict[str, str | None]:
        """The texts by the stem that a caption's file gets, in the order they were given."""
        given: dict[str, str | None] = {}
        for name, text in captions:
            with faults.of(quote_name(name)):
                image = self._names.find(name)
                if image.path.name in given:
                    raise DatasetError("it is named twice; give each image one text")
                given[image.path.name] = text
        by_stem: dict[str, str | None] = {}
        for name, text in given.items():
            stem = _nfc(Path(name).stem)
            others = [image.path.name for image in self._stems[stem] if image.path.name != name]
            # One file is the caption of all of them: nobody's may change without being named.
            if any(other not in given or _differ(given[other], text) for other in others):
                both = ", ".join(map(quote_name, others))
                faults.add(
                    quote_name(name),
                    f"it shares its caption {quote_name(self._caption_name(stem))} with {both}; give all of them the "
                    "same text, or let the person rename one",
                )
            by_stem[stem] = text
        return by_stem

    def _caption_name(self, stem: str) -> str:
        """The file that is the caption of a stem, or would be."""
        names = self._captions.get(stem, ())
        regular = [name for name in names if _is_regular(self._dataset.source, name)]
        # Of several the reader takes the last; where something else lies there, that is told when it is read.
        return [*names, *regular][-1] if names else f"{self._stems[stem][0].path.stem}.txt"

    def _current(self, stem: str) -> tuple[str, bytes | None]:
        """The file that is the caption of a stem, and what it holds.

        Raises:
            DatasetError: It is no file that may be written over. Half a sentence.
        """
        caption = self._caption_name(stem)
        return caption, _read(self._dataset.source, caption)

    def _images(self, stem: str) -> tuple[str, ...]:
        return tuple(image.path.name for image in self._stems[stem])

    def _shown(self, stem: str) -> str:
        return ", ".join(map(quote_name, self._images(stem)))


class _Names:
    """Finds an image by the name an agent has for it."""

    def __init__(self, dataset: Dataset) -> None:
        self._exact = {image.path.name: image for image in dataset.images}
        self._alike: dict[str, list[ImageFile]] = defaultdict(list)
        self._near: dict[str, str] = {}
        self._skipped = {skipped.name: skipped.reason for skipped in dataset.skipped}
        for image in dataset.images:
            # As other systems code the same letters, and as our answers show names that are no plain text.
            for alike in {_nfc(image.path.name), quote_name(image.path.name)}:
                self._alike[alike].append(image)
            self._near[_near(image.path.name)] = image.path.name

    def find(self, name: str) -> ImageFile:
        """The image of that name.

        Raises:
            DatasetError: There is none, or several could be meant. Half a sentence.
        """
        if name in self._exact:
            return self._exact[name]
        alike = self._alike.get(_nfc(name), ())
        if len(alike) == 1:
            return alike[0]
        if alike:
            raise DatasetError("several images have that name in different codings; let the person rename one")
        if "/" in name or "\\" in name:
            raise DatasetError("give the image's name alone, without a folder")
        if reason := self._skipped.get(quote_name(name)):
            raise DatasetError(f"it is left out ({reason})")
        near = self._near.get(_near(name))
        raise DatasetError("no image here has that name" + (f"; {quote_name(near)} has a similar one" if near else ""))


class _Faults:
    """All that stands in the way of a request, so that nobody mends one fault to meet the next."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._faults: list[str] = []

    def add(self, name: str, what: str) -> None:
        self._faults.append(f"{name}: {what}.")

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """What is said in the block is said of that file."""
        try:
            yield
        except DatasetError as error:
            self.add(name, str(error))

    def refuse(self) -> None:
        """End here if there are faults.

        Raises:
            DatasetError: With all of them, and what names look like.
        """
        if not self._faults:
            return
        shown = [f"- {fault}" for fault in self._faults[:_FAULTS_SHOWN]]
        if len(self._faults) > _FAULTS_SHOWN:
            shown.append(f"- … and {len(self._faults) - _FAULTS_SHOWN} more.")
        names = [quote_name(image.path.name, 80) for image in self._dataset.images[:_NAMES_SHOWN]]
        like = f"Images here are named like {', '.join(names)}." if names else "It holds no image that can be read."
        raise DatasetError(
            "\n".join([f"Nothing was written in {quoted(self._dataset.folder)}.", *shown, like]), self._faults
        )


def _list_captions(source: OpenFolder) -> Mapping[str, list[str]]:
    """The names that end like a caption's, by stem, in the order in which a reader takes them."""
    captions: dict[str, list[str]] = defaultdict(list)
    try:
        names = [entry.name for entry in source.entries()]
    except OSError as error:
        raise DatasetError(f"{quoted(source.path)} cannot be read: {why(error)}. Nothing was written.") from None
    for name in sorted(names, key=lambda name: (_nfc(name), name)):
        if Path(name).suffix.lower() == ".txt":
            captions[_nfc(Path(name).stem)].append(name)
    return captions


def _is_regular(source: OpenFolder, name: str) -> bool:
    try:
        status = source.status(name)
    except OSError:
        return False
    return status is not None and stat.S_ISREG(status.st_mode)


def _read(source: OpenFolder, caption: str) -> bytes | None:
    """What a caption's file holds now; None where there is none.

    Raises:
        DatasetError: It may not be written over. Half a sentence.
    """
    shown = quote_name(caption)
    try:
        status = source.status(caption)
        if status is None:
            return None
        if stat.S_ISLNK(status.st_mode):
            raise DatasetError(f"its caption {shown} is a link, and links are never followed; put a plain file there")
        if not stat.S_ISREG(status.st_mode):
            raise DatasetError(f"its caption {shown} is not a regular file; move it away")
        if not status.st_mode & stat.S_IWUSR:
            raise DatasetError(f"its caption {shown} is write-protected")
        with source.open(caption) as file:
            data = file.read(MAX_REPLACED_CAPTION_BYTES + 1)
    except OSError as error:
        raise DatasetError(f"its caption {shown} cannot be read: {why(error)}") from None
    if len(data) > MAX_REPLACED_CAPTION_BYTES:
        raise DatasetError(
            f"{shown} is larger than {MAX_REPLACED_CAPTION_BYTES // 1000} kB, which is no caption "
            f"({MAX_CAPTION_BYTES // 1000} kB at most); move it away"
        )
    return data


def _says(data: bytes | None, wanted: bytes) -> bool:
    """Whether a caption's file says that already, however it is coded."""
    try:
        return data is not None and decode_caption(data) == decode_caption(wanted)
    except DatasetError:
        return False


def _carry_out(mode: Mode, plan: Outcome, dataset: Dataset, undo: UndoFile, past: Past) -> Outcome:
    """Make the changes that were planned; what somebody else changed meanwhile is left alone."""
    if mode == "undo":
        done = _write(dataset, plan, lambda: None)
        settled = [Replaced(back.images, back.caption, back.after, back.before) for back in (*done.changes, *done.same)]
        # Where it cannot be forgotten, another undo finds all as it was before.
        with suppress(ConfigError):
            undo.write(past.without(settled))
        return done
    if not plan.changes:
        # A repeat must not forget what the first call replaced.
        return plan
    return _write(dataset, plan, lambda: undo.write(past.with_written(plan.changes)))


def _write(dataset: Dataset, plan: Outcome, keep: Callable[[], None]) -> Outcome:
    """Write all texts beside the captions first, so that a full disk changes none; then call `keep`; then rename."""
    source = dataset.source
    staged: dict[str, str] = {}
    done: list[Replaced] = []
    left_alone: list[Replaced] = list(plan.left_alone)
    change = None
    try:
        for change in plan.changes:
            if change.after is not None:
                staged[change.caption] = source.stage(change.caption, change.after)
        keep()
        for change in plan.changes:
            if not _holds(source, change.caption, change.before):
                left_alone.append(change)
                continue
            if change.after is None:
                source.remove(change.caption)
            else:
                source.replace(change.caption, staged[change.caption])
                del staged[change.caption]
            done.append(change)
    except OSError as error:
        name = quote_name(change.caption) if change is not None else "a caption"
        so_far = (
            f"{len(done)} captions were written before it; mode undo takes them back" if done else "Nothing was written"
        )
        raise DatasetError(
            f"{name} cannot be written in {quoted(dataset.folder)}: {why(error)}. {so_far}. Let this user write there, "
            "and make room on the disk."
        ) from None
    finally:
        for name in staged.values():
            source.discard(name)
        source.sync()
    return Outcome(tuple(done), plan.same, tuple(left_alone))


def _holds(source: OpenFolder, caption: str, content: bytes | None) -> bool:
    try:
        return _read(source, caption) == content
    except DatasetError:
        return False


def _differ(one: str | None, other: str | None) -> bool:
    return (one or "").strip() != (other or "").strip()


def _near(name: str) -> str:
    """What a name has in common with those it is mistaken for."""
    return Path(_nfc(name)).stem.casefold()


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)
