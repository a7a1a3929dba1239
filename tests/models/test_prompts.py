import pytest
import torch

from benchmarks.offline_clip.nouns import read_words
from models.prompts import BackgroundPrompts, nearest_nouns, read_nouns


def prompts(initialization: str, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return BackgroundPrompts(5, 30, 64, initialization=initialization, generator=generator).context


def test_initializations() -> None:
    uniform, normal = prompts("uniform"), prompts("normal")
    assert uniform.shape == (5, 30, 64)
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() < 1
    assert normal.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(uniform, prompts("uniform"))
    assert not torch.equal(uniform, prompts("uniform", seed=1))
    with pytest.raises(ValueError, match=r"expected initialization in .* got 'zeros'"):
        prompts("zeros")


def test_nearest_nouns_come_first() -> None:
    nouns = ["rail", "grass", "sky"]
    embeddings = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [0, 1], [1, 1]]), dim=1)
    near = nearest_nouns(torch.tensor([[1.0, 0.0]]), nouns, embeddings, count=2)
    assert [noun for noun, _ in near[0]] == ["rail", "sky"]
    assert near[0][1][1] == pytest.approx(0.5**0.5)
    with pytest.raises(ValueError, match="expected 3 noun embeddings, got 2"):
        nearest_nouns(torch.zeros(1, 2), nouns, embeddings[:2], count=1)


def test_the_noun_list_is_sorted_lowercase_and_clean() -> None:
    shipped = read_nouns()
    assert list(shipped) == sorted(set(shipped))
    assert all(noun == noun.lower().strip() and noun for noun in shipped)
    assert 2000 <= len(shipped) <= 3000
    assert {"rail", "grass", "kitchen", "court", "snow", "road", "sky", "water", "railroad"} <= set(shipped)
    assert not set(read_words("excluded")) & set(shipped)
