import torch

from models.generators.cnn import cosine_affinity
from models.inference.postprocess import _identity, _match_range
from models.refine.random_walk import _boxes, _RandomWalk, _source_boxes, _transition, _walk


def test_rows_of_the_transition_sum_to_one() -> None:
    matrix = _transition(torch.rand(30, 30))
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(30))
    assert (matrix >= 0).all()


def test_the_transition_by_hand() -> None:
    # Two places alike, a third like none of them: the two share, the third keeps.
    affinity = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    expected = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(_transition(affinity), expected)


def test_a_place_like_none_stays_by_itself() -> None:
    affinity = torch.zeros(2, 2)
    torch.testing.assert_close(_transition(affinity), torch.eye(2))


def test_boxes_by_hand() -> None:
    maps = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.1], [0.0, 0.0, 0.0, 0.4]]])
    expected = [[True, True, False, False], [True, True, False, False], [False, False, False, True]]
    assert _boxes(maps, share=0.4)[0].tolist() == expected


def test_evidence_reaches_what_is_alike_and_nothing_else() -> None:
    # A 2 × 4 grid whose left half is alike; evidence is at one place of it.
    likeness = torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(2)
    affinity = ((likeness[:, None] == likeness).float()).view(2, 4, 2, 4)
    scores = torch.zeros(1, 2, 4)
    scores[0, 0, 0], scores[0, 1, 1] = 1.0, 0.5
    found = _walk(scores, affinity, box_share=0.4)
    torch.testing.assert_close(found[0, :, :2], torch.full((2, 2), 0.375))
    assert found[0, :, 2:].max() == 0


def test_evidence_may_leave_the_boxes_that_it_starts_in() -> None:
    likeness = torch.tensor([1.0, 1.0, 0.0, 1.0]).repeat(2)
    affinity = ((likeness[:, None] == likeness).float()).view(2, 4, 2, 4)
    scores = torch.zeros(1, 2, 4)
    scores[0, 0, 0], scores[0, 0, 3] = 1.0, 0.9
    # A box in the last column does not count, nor does the last row.
    assert _source_boxes(scores, share=0.4)[0].tolist() == [[True, False, False, False], [False] * 4]
    found = _walk(scores, affinity, box_share=0.4, from_boxes=True)
    torch.testing.assert_close(found[0], torch.tensor([[1.0, 1.0, 0.0, 1.0]] * 2) / 6)


def test_cams_get_their_range_back_and_constants_stay() -> None:
    scores = torch.rand(3, 16, 24) * 0.5 + 0.1
    scores[2] = 0.3
    affinity = torch.rand(1, 4, 6, 4, 6)
    image = torch.rand(1, 3, 16, 24)
    found = _RandomWalk(lambda _: affinity, _match_range, box_share=0.4)(image, scores[None])[0]
    torch.testing.assert_close(found.amax(dim=(1, 2)), scores.amax(dim=(1, 2)))
    torch.testing.assert_close(found.amin(dim=(1, 2)), scores.amin(dim=(1, 2)))
    assert (found[2] == 0.3).all()


def test_cosine_affinity_by_hand() -> None:
    features = torch.tensor([[[[1.0, 2.0, 0.0]], [[0.0, 0.0, 1.0]], [[0.0, -1.0, 0.0]]]])
    found = cosine_affinity(features).view(3, 3)
    expected = torch.tensor([[1.0, 0.8944, 0.0], [0.8944, 1.0, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_places_without_features_are_like_none() -> None:
    assert cosine_affinity(torch.zeros(1, 8, 2, 2)).abs().max() == 0


def test_a_batch_equals_its_items_alone() -> None:
    images, scores = torch.rand(2, 3, 32, 32), torch.rand(2, 1, 32, 32)
    walk = _RandomWalk(lambda seen: cosine_affinity(torch.nn.functional.avg_pool2d(seen, 8)), _identity, box_share=0.4)
    together = walk(images, scores)
    for item in range(2):
        one = slice(item, item + 1)
        torch.testing.assert_close(together[one], walk(images[one], scores[one]))
