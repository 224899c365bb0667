"""A segmenter's masks replace rough ones where they agree, and stay where labels may be."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from diffugen.config.labelling import LabelSettings, ScoreWeights
from diffugen.labels import label_combined
from diffugen.labels.score import in_lab, measure
from diffugen.labels.segmenter import segmented
from diffugen.labels.shapes import decode, encode
from diffugen.labels.witness import Witness
from diffugen.records import Instances, Phrase
from tests.support.boxes import HEIGHT, WIDTH, Box, box_mask
from tests.support.colour_segmenter import ColourSegmenter

ROUGH = LabelSettings(method="paper", threshold=0.5, erode_frac=0, dilate_frac=0)
SAM = ROUGH.changed(refine="sam")
PIANO, CAR = Phrase("piano", "piano"), Phrase("car", "car")


def picture(*boxes: Box) -> NDArray[np.uint8]:
    """Boxes of a colour each, on a road that goes all around them."""
    rgb = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    for number, box in enumerate(boxes):
        rgb[box_mask(box)] = (200, 40 * number, 10)
    return rgb


def heat(*parts: tuple[Box, float]) -> NDArray[np.float32]:
    """Boxes with a heat each, which is a little higher at one pixel in the middle."""
    found = np.full((HEIGHT, WIDTH), 0.01, np.float32)
    for box, value in parts:
        found[box_mask(box)] = value
        found[(box[1] + box[3]) // 2, (box[0] + box[2]) // 2] = 1.1 * value
    return found


def labels(
    rgb: NDArray[np.uint8],
    segmenter: ColourSegmenter | None,
    *found: tuple[Phrase, NDArray[np.float32]],
    settings: LabelSettings = SAM,
    region: NDArray[np.bool_] | None = None,
    witness: Witness | None = None,
) -> Instances:
    phrases, heats = zip(*found, strict=True)
    painted = None if region is None else encode(region)
    return label_combined(
        np.stack(heats), phrases, settings, ScoreWeights(edge=1.0), rgb, painted, witness, segmenter
    )


def masks(instances: Instances) -> list[NDArray[np.bool_]]:
    return [decode(rle) for rle in instances.rles]


def test_objects_get_their_outline_and_the_score_that_it_deserves() -> None:
    rgb, segmenter = picture((4, 3, 16, 13), (22, 8, 36, 20)), ColourSegmenter()
    piano, car = heat(((5, 5, 17, 14), 0.8)), heat(((21, 7, 34, 18), 0.8))
    found = labels(rgb, segmenter, (PIANO, piano), (CAR, car))
    assert found.class_names == ("piano", "car")
    outlines = [box_mask((4, 3, 16, 13)), box_mask((22, 8, 36, 20))]
    np.testing.assert_array_equal(masks(found), outlines)
    assert found.terms[0] == measure(outlines[:1], piano, [car], in_lab(rgb))[0]
    rough = labels(rgb, None, (PIANO, piano), (CAR, car), settings=ROUGH)
    assert found.terms[0]["edge"] > rough.terms[0]["edge"]


def test_it_is_asked_once_for_all_objects_with_box_and_hottest_point() -> None:
    segmenter = ColourSegmenter()
    piano, car = heat(((5, 5, 17, 14), 0.8)), heat(((21, 7, 34, 18), 0.8))
    labels(picture(), segmenter, (PIANO, piano), (CAR, car), (Phrase("road", None), piano))
    [(boxes, points)] = segmenter.asked
    assert boxes.tolist() == [[5, 5, 17, 14], [21, 7, 34, 18]]
    assert points.tolist() == [[11.5, 9.5], [27.5, 12.5]]


def test_it_is_not_asked_about_an_image_without_objects() -> None:
    segmenter = ColourSegmenter()
    assert len(labels(picture(), segmenter, (PIANO, heat()))) == 0
    assert not segmenter.asked


def test_what_disagrees_changes_nothing() -> None:
    """Here the point lies on the road."""
    rgb, piano = picture((30, 14, 40, 24)), heat(((5, 5, 17, 14), 0.8))
    found = labels(rgb, ColourSegmenter(), (PIANO, piano))
    rough = labels(rgb, None, (PIANO, piano), settings=ROUGH)
    assert found.rles == rough.rles and found.terms == rough.terms


@pytest.mark.parametrize(("width", "replaced"), [(20, True), (21, False)])
def test_half_of_the_union_must_be_shared(width: int, replaced: bool) -> None:
    rough, outline = box_mask((3, 4, 13, 14)), (3, 4, 3 + width, 14)
    [[mask]] = segmented([[rough]], [heat()], [None], picture(outline), ColourSegmenter())
    np.testing.assert_array_equal(mask, box_mask(outline) if replaced else rough)


def test_masks_stay_within_the_painted_region() -> None:
    region = box_mask((0, 0, 15, HEIGHT))
    [mask] = masks(
        labels(
            picture((4, 3, 25, 13)), ColourSegmenter(), (PIANO, heat(((5, 5, 14, 14), 0.8))), region=region
        )
    )
    np.testing.assert_array_equal(mask, box_mask((4, 3, 15, 13)))


def test_pieces_of_an_object_become_one() -> None:
    """The heat of the piano falls into two pieces, and there is another piano."""
    rgb = picture((4, 3, 24, 13), (26, 8, 36, 20))
    parts = heat(((4, 3, 17, 12), 0.8), ((19, 4, 23, 12), 0.8), ((26, 9, 35, 19), 0.7))
    assert len(labels(rgb, None, (PIANO, parts), settings=ROUGH)) == 3
    found = masks(labels(rgb, ColourSegmenter(), (PIANO, parts)))
    np.testing.assert_array_equal(found, [box_mask((4, 3, 24, 13)), box_mask((26, 8, 36, 20))])


def test_objects_are_still_in_order_of_size() -> None:
    rgb = picture((4, 3, 14, 13), (22, 4, 36, 20))
    found = masks(
        labels(rgb, ColourSegmenter(), (PIANO, heat(((4, 2, 16, 14), 0.8), ((22, 5, 32, 19), 0.7))))
    )
    np.testing.assert_array_equal(found, [box_mask((22, 4, 36, 20)), box_mask((4, 3, 14, 13))])


def test_a_witness_keeps_its_masks_and_its_objects() -> None:
    """The segmenter takes the piano and the car beside it for one, because they are of one colour."""
    car = box_mask((20, 6, 26, 12))
    seen = Instances((WIDTH, HEIGHT), ("car",), (encode(car),), np.array([0.9]))
    segmenter = ColourSegmenter()
    found = labels(
        picture((4, 3, 26, 13)),
        segmenter,
        (PIANO, heat(((5, 4, 19, 13), 0.8))),
        (CAR, heat(((18, 4, 26, 14), 0.8))),
        witness=Witness(seen, frozenset({"car"})),
    )
    assert found.class_names == ("piano", "car")
    np.testing.assert_array_equal(masks(found), [box_mask((4, 3, 26, 13)) & ~car, car])
    [(boxes, _)] = segmenter.asked
    assert len(boxes) == 1, "only attention's own objects are outlined"


def test_what_is_missing_is_told() -> None:
    piano = heat(((5, 5, 17, 14), 0.8))
    with pytest.raises(ValueError, match="'sam', which needs a segmenter"):
        labels(picture(), None, (PIANO, piano))
    with pytest.raises(ValueError, match="'sam', which needs the image"):
        label_combined(piano[None], [PIANO], SAM, ScoreWeights(), segmenter=ColourSegmenter())
    turned = picture().transpose(1, 0, 2)
    with pytest.raises(ValueError, match=r"masks of shape \(24, 40\) need pixels of that size"):
        label_combined(piano[None], [PIANO], SAM, ScoreWeights(), turned, segmenter=ColourSegmenter())
