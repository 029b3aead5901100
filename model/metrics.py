"""Caption scores as coco-caption computes them, on its scale (BLEU 0 to 1, CIDEr-D 0 to 10).

BLEU, ROUGE-L and CIDEr-D are pycocoevalcap's own classes over `model.vocabulary`'s tokens,
without Java. METEOR and SPICE are Java programs; where they cannot run, `score_all` says why.

  BLEU      Papineni et al. 2002, closest reference length
  ROUGE-L   Lin 2004, beta 1.2
  METEOR    Denkowski and Lavie 2014
  CIDEr-D   Vedantam et al. 2015, sigma 6, over up to 4-grams
  SPICE     Anderson et al. 2016
"""

import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pycocoevalcap
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import METEOR_JAR
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.spice.get_stanford_models import JAR as CORENLP_JAR
from pycocoevalcap.spice.spice import SPICE_JAR

from model.errors import InvalidInput
from model.tokeniser import ptb_tokens

BLEU = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
ROUGE_L, CIDER, METEOR, SPICE = "rouge_l", "cider", "meteor", "spice"
PER_IMAGE = (CIDER, BLEU[-1], ROUGE_L)

# METEOR's two runs load paraphrases for 5 s each; SPICE parses every reference.
JAVA_TIMEOUT_S = 1800.0

_PACKAGE = Path(pycocoevalcap.__path__[0])
_METEOR_DIR, _SPICE_DIR = _PACKAGE / "meteor", _PACKAGE / "spice"
_CORENLP = [_SPICE_DIR / "lib" / f"{CORENLP_JAR}{suffix}.jar" for suffix in ("", "-models")]

_Tokens = dict[str, list[str]]


@dataclass(frozen=True)
class Scores:
    """What could be computed, and why the rest could not.

    Attributes:
      values: score by metric name.
      missing: one line by metric name, what was wrong and what to do.
      per_image: PER_IMAGE by image key, as coco-caption gives them; CIDEr-D with n-gram weights
        from all images.
    """

    values: dict[str, float]
    missing: dict[str, str]
    per_image: dict[str, dict[str, float]]


def score(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """BLEU-1 to -4, ROUGE-L and CIDEr-D of one caption an image, without Java.

    CIDEr weighs an n-gram by how few of these images have it in their references, so that
    its value belongs to this set of images; with a single image every weight is log 1 and
    the score 0.

    Args:
      candidates: caption by image key; empty text is allowed and scores 0.
      references: one or more captions by image key.

    Returns:
      Score by name: bleu_1, bleu_2, bleu_3, bleu_4, rouge_l, cider.

    Raises:
      InvalidInput: no images, other keys in one than in the other, or no reference text.
    """
    values, _ = _python_scores(*_tokenised(candidates, references))
    return values


def per_image_cider(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """CIDEr-D of each image, n-gram weights from all of them; arguments as `score`."""
    hypotheses, truths = _tokenised(candidates, references)
    _, each = Cider().compute_score(truths, hypotheses)
    return dict(zip(truths, map(float, each), strict=True))


def score_all(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    timeout_s: float = JAVA_TIMEOUT_S,
) -> Scores:
    """`score`, and METEOR and SPICE where Java and their data are there.

    Args:
      candidates: caption by image key.
      references: one or more captions by image key.
      timeout_s: longest time for each of the two Java programs.

    Raises:
      InvalidInput: as `score`; a failure of Java is a line in `missing` instead.
    """
    hypotheses, truths = _tokenised(candidates, references)
    values, per_image = _python_scores(hypotheses, truths)
    missing = missing_metrics()
    programs: dict[str, Callable[[_Tokens, _Tokens, float], float]] = {
        METEOR: _meteor,
        SPICE: _spice,
    }
    for name, compute in programs.items():
        if name in missing:
            continue
        try:
            values[name] = compute(hypotheses, truths, timeout_s)
        except subprocess.TimeoutExpired:
            missing[name] = f"Java did not end within {timeout_s:g} s; give it more time"
        except subprocess.CalledProcessError as error:
            complaint = (error.stderr or "").strip().splitlines() or ["no message"]
            missing[name] = f"Java ended with {error.returncode}: {complaint[0]}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            missing[name] = f"Java's answer was not understood: {error}".splitlines()[0]
    return Scores(values, missing, per_image)


def missing_metrics() -> dict[str, str]:
    """Metrics that cannot be computed on this machine: one line by name, looking only."""
    if shutil.which("java") is None:
        reason = "no `java` on the PATH; install a Java runtime (17 is known to work)"
        return {METEOR: reason, SPICE: reason}
    missing = {}
    if not (_METEOR_DIR / METEOR_JAR).exists():
        missing[METEOR] = f"no {_METEOR_DIR / METEOR_JAR}; install pycocoevalcap again"
    absent = next((jar for jar in _CORENLP if not jar.exists()), None)
    if absent is not None:
        missing[SPICE] = (
            f"no {absent.name} (Stanford CoreNLP); download it with "
            "`python -m pycocoevalcap.spice.get_stanford_models`"
        )
    return missing


def _tokenised(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[_Tokens, _Tokens]:
    """Check the captions and join their tokens by blanks, keys in one order for both."""
    if not references:
        raise InvalidInput("no images to score, expected at least one with references")
    if odd := sorted(candidates.keys() ^ references.keys()):
        side = "references" if odd[0] in candidates else "caption"
        raise InvalidInput(
            f"image {odd[0]!r} has no {side} ({len(odd)} such images); "
            "score exactly one caption for each image that has references"
        )
    keys = sorted(references)
    for key in keys:
        if isinstance(references[key], str) or not references[key]:
            raise InvalidInput(
                f"image {key!r} has references {references[key]!r}, expected a list of one or more"
            )
    hypotheses = {key: [" ".join(ptb_tokens(candidates[key]))] for key in keys}
    truths = {key: [" ".join(ptb_tokens(text)) for text in references[key]] for key in keys}
    if not any(text for texts in truths.values() for text in texts):
        raise InvalidInput("no reference has a word in it, expected captions")
    return hypotheses, truths


def _python_scores(
    hypotheses: _Tokens, truths: _Tokens
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Scores of the whole by name, and those of each image by its key."""
    bleu, bleu_each = Bleu(len(BLEU)).compute_score(truths, hypotheses, verbose=0)
    rouge, rouge_each = Rouge().compute_score(truths, hypotheses)
    cider, cider_each = Cider().compute_score(truths, hypotheses)
    values = dict(zip(BLEU, bleu, strict=True)) | {ROUGE_L: rouge, CIDER: cider}
    rows = zip(cider_each, bleu_each[-1], rouge_each, strict=True)
    per_image = {
        key: dict(zip(PER_IMAGE, map(float, row), strict=True))
        for key, row in zip(truths, rows, strict=True)
    }
    return {name: float(value) for name, value in values.items()}, per_image


def _meteor(hypotheses: _Tokens, truths: _Tokens, timeout_s: float) -> float:
    """Corpus METEOR, by the protocol of its `-stdio` mode.

    pycocoevalcap's own wrapper waits for ever when Java dies, so we talk to the jar: one run
    counts matches image by image, a second one turns all counts into the score.
    """

    def ask(lines: Sequence[str]) -> list[str]:
        command = ["java", "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", METEOR_JAR]
        command += ["-", "-", "-stdio", "-l", "en", "-norm"]
        return _java(command, _METEOR_DIR, "\n".join(lines) + "\n", timeout_s).splitlines()

    # The bars separate fields of the protocol; a caption has none to say.
    counts = ask(
        [
            " ||| ".join(["SCORE", *(text.replace("|||", "") for text in [*truths[key], *caption])])
            for key, caption in hypotheses.items()
        ]
    )
    if len(counts) != len(hypotheses):
        raise ValueError(f"{len(counts)} lines for {len(hypotheses)} captions")
    return float(ask([" ||| ".join(["EVAL", *counts])])[-1])


def _spice(hypotheses: _Tokens, truths: _Tokens, timeout_s: float) -> float:
    """Mean F-score over images of SPICE's jar."""
    inputs = [
        {"image_id": key, "test": caption[0], "refs": truths[key]}
        for key, caption in hypotheses.items()
    ]
    with tempfile.TemporaryDirectory(prefix="captionbeam-spice-") as directory:
        source, target = Path(directory, "captions.json"), Path(directory, "scores.json")
        source.write_text(json.dumps(inputs), encoding="utf-8")
        command = ["java", "-Xmx8G", "-jar", SPICE_JAR, str(source), "-out", str(target)]
        _java([*command, "-subset", "-silent"], _SPICE_DIR, "", timeout_s)
        answers = json.loads(target.read_text(encoding="utf-8"))
    scores = [float(answer["scores"]["All"]["f"]) for answer in answers]
    if len(scores) != len(hypotheses):
        raise ValueError(f"{len(scores)} scores for {len(hypotheses)} captions")
    return math.fsum(scores) / len(scores)


def _java(command: Sequence[str], directory: Path, text: str, timeout_s: float) -> str:
    done = subprocess.run(
        command,
        cwd=directory,
        input=text,
        capture_output=True,
        check=True,
        encoding="utf-8",
        timeout=timeout_s,
    )
    return done.stdout
