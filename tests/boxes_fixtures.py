"""COCO instances JSON as tests write it; imported by tests."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Objects = Mapping[str, Sequence[tuple[str, Sequence[float]]]]
"""Name and [left, top, width, height] of the objects of each picture, by its file name."""


def instances(
    pictures: Objects, *, size: tuple[int, int] = (300, 100), names: Sequence[str] = ()
) -> dict[str, Any]:
    """A document of pictures of one width and height; ids of images are not their places.

    Categories are those of the objects, and more `names`.
    """
    width, height = size
    objects = [(file, *item) for file, of_file in pictures.items() for item in of_file]
    categories = sorted({*names, *(name for _, name, _ in objects)})
    numbers = {file: 1000 - number for number, file in enumerate(pictures)}
    return {
        "info": {"year": 2017},
        "images": [
            {"id": number, "file_name": file, "width": width, "height": height}
            for file, number in numbers.items()
        ],
        "annotations": [
            {
                "id": number,
                "image_id": numbers[file],
                "category_id": 10 + categories.index(name),
                "bbox": list(bbox),
                "segmentation": [[0, 0, 1, 1]],
                "iscrowd": 0,
            }
            for number, (file, name, bbox) in enumerate(objects)
        ],
        "categories": [{"id": 10 + index, "name": name} for index, name in enumerate(categories)],
    }


def write_instances(path: Path, pictures: Objects, **changes: Any) -> Path:
    """Write `instances` into a file."""
    path.write_text(json.dumps(instances(pictures, **changes)), encoding="utf-8")
    return path
