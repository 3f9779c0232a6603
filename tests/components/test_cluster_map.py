"""ClusterMap: both directions, the member draw, cuts of the tree, the codebook's fingerprint."""

import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.stats import chisquare

from codeclade import ClusterMap

LABELS = [2, 0, 1, 1, 0, 1, 3, 1]


def codebook(rows: int = 8, width: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def small() -> ClusterMap:
    return ClusterMap.from_labels(LABELS, codebook())


def test_repr_says_what_it_is(small):
    assert repr(small) == "ClusterMap(4 clusters of 8 codes, method masc, no tree)"
    tree = linkage(codebook().numpy(), "average")
    children, heights = tree[:, :2].astype(int), tree[:, 2]
    whole = ClusterMap.from_labels([0] * 8, codebook(), children, heights, method="dcpe")
    assert repr(whole) == "ClusterMap(1 clusters of 8 codes, method dcpe, tree of 7 merges)"


def test_labels_become_clusters_and_members(small):
    assert small.codebook_size == 8
    assert small.num_clusters == 4
    assert small.config.codebook_dim == 4
    assert small.sizes.tolist() == [2, 4, 1, 1]
    assert [small.members(c).tolist() for c in range(4)] == [[1, 4], [2, 3, 5, 7], [0], [6]]
    ids = torch.tensor([[0, 1], [7, 6]])
    assert small.to_clusters(ids).tolist() == [[2, 0], [1, 3]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2], r"shape \(3,\), but there are 8 codes"),
        ([0, 1, 1, 3, 3, 0, 0, 0], "every cluster from 0 to 3"),
        ([0, -1, 1, 1, 1, 0, 0, 0], "every cluster from 0 to 1"),
    ],
)
def test_bad_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        ClusterMap.from_labels(labels, codebook())


@pytest.mark.parametrize("cluster", [-1, 4])
def test_a_cluster_out_of_range_has_no_members(small, cluster):
    with pytest.raises(ValueError, match=rf"cluster {cluster} is outside 0\.\.3"):
        small.members(cluster)


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4)])
def test_drawn_members_lie_in_their_cluster_at_any_shape(small, shape):
    generator = torch.Generator().manual_seed(0)
    clusters = torch.randint(4, shape, generator=generator)
    ids = small.draw_members(clusters, generator)
    assert ids.shape == clusters.shape
    assert torch.equal(small.to_clusters(ids), clusters)


def test_member_draw_is_uniform(small):
    count = 40_000
    generator = torch.Generator().manual_seed(1)
    ids = small.draw_members(torch.full((count,), 1), generator)
    counts = ids.bincount(minlength=8)[[2, 3, 5, 7]]
    assert counts.sum() == count
    assert chisquare(counts).pvalue > 1e-3


def test_member_draw_is_a_function_of_the_generator(small):
    clusters = torch.ones(200, dtype=torch.int64)
    first, again, other = (
        small.draw_members(clusters, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_uniform_numbers_pick_members_in_ascending_order(small):
    uniforms = torch.tensor([0.0, 0.24, 0.25, 0.5, 0.75, 1 - 2**-24])
    ids = small.draw_members(torch.ones(6, dtype=torch.int64), uniforms=uniforms)
    assert ids.tolist() == [2, 2, 3, 5, 7, 7]


def test_member_table_follows_a_new_mapping(small):
    assert small.sizes.tolist() == [2, 4, 1, 1]  # fills the table
    other = ClusterMap.from_labels([0, 1, 2, 3, 3, 3, 3, 3], codebook())
    small.load_state_dict(other.state_dict())
    assert small.sizes.tolist() == [1, 1, 1, 5]


@pytest.mark.parametrize("rows", [40, 300])
def test_cut_equals_scipy_at_every_number_of_clusters(tiny_map, relabelled, rows):
    vectors = codebook(rows, 6)
    tree = linkage(vectors.double().numpy(), "average")
    cluster_map = tiny_map(vectors, rows // 3)
    step = 1 if rows == 40 else 23
    for count in [*range(1, rows, step), rows]:
        cut = cluster_map.cut(count)
        expected = relabelled(fcluster(tree, count, "maxclust"))
        assert cut.num_clusters == count
        assert torch.equal(cut.mapping, expected), count
        assert cut.matches(vectors)


def test_cuts_are_nested_and_can_be_cut_again(tiny_map):
    cluster_map = tiny_map(codebook(60, 6), 20)
    coarse, fine = cluster_map.cut(7), cluster_map.cut(31)
    for c in range(31):
        assert len(coarse.to_clusters(fine.members(c)).unique()) == 1
    assert torch.equal(coarse.cut(20).mapping, cluster_map.mapping)


def test_a_partial_tree_cuts_as_far_as_it_reaches(tiny_map):
    vectors = codebook(30, 6)
    full = tiny_map(vectors, 10)
    part = ClusterMap.from_labels(
        full.mapping, vectors, children=full.merges[:20], heights=full.heights[:20]
    )
    assert torch.equal(part.cut(10).mapping, full.mapping)
    assert torch.equal(part.cut(25).mapping, full.cut(25).mapping)
    with pytest.raises(ValueError, match=r"num_clusters=9 is outside 10\.\.30"):
        part.cut(9)


def test_cuts_that_cannot_be_made_are_refused(small, tiny_map):
    with pytest.raises(ValueError, match="no merge tree"):
        small.cut(2)
    for count in (0, 31):
        with pytest.raises(ValueError, match=rf"num_clusters={count} is outside 1\.\.30"):
            tiny_map(codebook(30, 6), 10).cut(count)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(5))
def test_matches_its_codebook_after_storage_in_half_precision(dtype, seed):
    vectors = codebook(256, 8, seed)
    cluster_map = ClusterMap.from_labels(torch.arange(256) // 2, vectors)
    assert cluster_map.matches(vectors)
    assert cluster_map.matches(vectors.to(dtype))
    assert cluster_map.to(dtype).matches(vectors.to(dtype))


@pytest.mark.parametrize("rows", [64, 256, 4096])
@pytest.mark.parametrize("seed", range(5))
def test_does_not_match_another_codebook(rows, seed):
    vectors = codebook(rows, 8, seed)
    cluster_map = ClusterMap.from_labels(torch.arange(rows) // 2, vectors)
    generator = torch.Generator().manual_seed(seed)
    assert not cluster_map.matches(codebook(rows, 8, seed + 50))
    assert not cluster_map.matches(vectors[torch.randperm(rows, generator=generator)])
    assert not cluster_map.matches(vectors.roll(1, 0))
    assert not cluster_map.matches(vectors.flip(1))
    assert not cluster_map.matches(-vectors)
    trained_on = vectors + 0.1 * torch.randn(vectors.shape, generator=generator)
    assert not cluster_map.matches(trained_on)


def test_does_not_match_a_codebook_of_another_shape(small):
    vectors = codebook()
    for other in (vectors[:7], vectors[:, :3], vectors.T.contiguous(), vectors.flatten()):
        assert not small.matches(other)


def test_casts_move_the_sketch_alone(tiny_map):
    cluster_map = tiny_map(codebook(30, 6), 10)
    heights, merges = cluster_map.heights.clone(), cluster_map.merges.clone()
    assert cluster_map.dtype == torch.float32
    half = cluster_map.to(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.mapping.dtype == half.merges.dtype == torch.int64
    assert torch.equal(half.heights, heights)
    assert torch.equal(half.merges, merges)
    assert half.float().dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_map_is_the_same(tiny_map, tmp_path, dtype):
    cluster_map = tiny_map(codebook(30, 6), 10)
    heights = cluster_map.heights.clone()
    cluster_map.to(dtype).save_pretrained(tmp_path)
    loaded = ClusterMap.from_pretrained(tmp_path, dtype=dtype)
    for name, value in cluster_map.config.items():
        assert name.startswith("_") or loaded.config[name] == value, name
    for name, tensor in cluster_map.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(loaded.heights, heights)  # a cast would create ties that were never there
    assert loaded.dtype == dtype
    assert loaded.matches(codebook(30, 6))
    assert torch.equal(loaded.cut(4).mapping, cluster_map.cut(4).mapping)
