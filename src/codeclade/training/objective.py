"""What a generator minimizes: its scheme's likelihood, and the losses that a recipe adds to it.

Model, losses and the networks that only training has stand in one module, so that a step is one
forward call (DDP and FSDP need that).

Shapes: B batch, P prefix positions, T tokens, V vocabulary, D width, d code width.
"""

import torch
from torch import Tensor, nn

from ..components.blocks import Output
from ..components.cluster_map import ClusterMap
from ..components.heads import TokenHead
from ..components.transformer import CodecladeTransformer
from ..components.vq_model import VQModel
from .context_noise import ContextNoise
from .embedding_priors import token_vectors, tree_cuts, unit_vectors, weighted_cuts
from .losses import alignment_loss, cluster_loss, tree_loss
from .sparse_head import SparseClusterToken
from .token_loss import token_loss

ALIGNMENT_WIDTH = 2048  # of reAR's three-layer networks
LATE = 0.75  # depth of the second layer that is aligned


class GeneratorObjective(nn.Module):
    """A generator with its training losses.

    Args:
        model: the generator; shares its weights.
        vq_model: gives code vectors to trees and alignment.
        cluster_map: of the schemes that have clusters, and of the cluster loss.
        cluster_loss_weight, tree_loss_weight, alignment_weight: 0 leaves a loss out.
        sparse_head: loss of a "cluster_token" model by `SparseClusterToken`.
    """

    def __init__(
        self,
        model: CodecladeTransformer,
        vq_model: VQModel,
        cluster_map: ClusterMap | None = None,
        *,
        cluster_loss_weight: float = 0.0,
        tree_loss_weight: float = 0.0,
        alignment_weight: float = 0.0,
        sparse_head: bool = False,
    ):
        super().__init__()
        self.model, self.first = model, model.config.prefix_length - 1
        self.weights = {
            "cluster_loss": cluster_loss_weight,
            "tree_loss": tree_loss_weight,
            "alignment_loss": alignment_weight,
        }
        # What an added loss needs to know of the codebook is made once, here.
        vectors = token_vectors(model.config.scheme, vq_model, cluster_map)
        if cluster_loss_weight:
            self.register_buffer("clusters", cluster_map.mapping.clone(), persistent=False)
        if tree_loss_weight:
            self.trees = nn.ModuleList(_Cuts(*weighted_cuts(rows)) for rows in vectors)
        if alignment_weight:
            self._add_alignment([unit_vectors(rows) for rows in vectors])
        # One ordinary layer over the vocabulary, whose logits no other loss reads.
        head = model.scheme.predictor(model.head)
        ordinary = type(head) is TokenHead and isinstance(head.linear, Output)
        self.chunked = ordinary and not (cluster_loss_weight or tree_loss_weight)
        self.sparse = None
        if sparse_head:
            mapping, clusters = model.token_embedding.cluster_of, model.config.coarse_vocab_size
            self.sparse = SparseClusterToken(mapping, clusters)

    def _add_alignment(self, vectors: list[Tensor]) -> None:
        for index, table in enumerate(vectors):
            self.register_buffer(f"vectors_{index}", table, persistent=False)
        self.columns = len(vectors)
        width, out = self.model.config.hidden_size, sum(table.shape[1] for table in vectors)
        self.encoder_side, self.decoder_side = (
            nn.Sequential(
                nn.Linear(width, ALIGNMENT_WIDTH), nn.SiLU(),
                nn.Linear(ALIGNMENT_WIDTH, ALIGNMENT_WIDTH), nn.SiLU(),
                nn.Linear(ALIGNMENT_WIDTH, out),
            )
            for _ in range(2)
        )  # fmt: skip

        # Hidden states come from hooks: the model itself keeps and returns only the last ones.
        self.states: dict[str, Tensor] = {}
        late = max(0, round(LATE * len(self.model.layers)) - 1)
        for name, index in (("early", 0), ("late", late)):
            self.model.layers[index].register_forward_hook(_Keep(self.states, name))

    def forward(
        self,
        tokens: Tensor,
        class_labels: Tensor,
        inputs: Tensor | None = None,
        replaced: Tensor | None = None,
        features: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses by name, "loss" their weighted sum, and "accuracy".

        Args:
            tokens: (B, T) or (B, T, 2), to be predicted.
            class_labels: (B,).
            inputs: what the model reads instead of `tokens`: those with context noise.
            replaced: (B, T) bool, where the two differ by noise.
            features, mask: (B, P, C) and (B, P) of captions, instead of classes.
        """
        inputs = tokens if inputs is None else inputs
        # The likelihood of every method, and what it predicted.
        found, predicted = self._likelihood(
            tokens, model_condition(tokens, class_labels, features, mask), inputs
        )
        total = likelihood = found["loss"]
        # Losses that methods add, each on the same logits.
        if self.weights["cluster_loss"]:
            found["cluster_loss"] = cluster_loss(*predicted[0], self.clusters)
        if self.weights["tree_loss"]:
            found["tree_loss"] = sum(
                tree_loss(logits, right, cuts.cuts, cuts.weights)
                for (logits, right), cuts in zip(predicted, self.trees, strict=True)
            )
        if self.weights["alignment_loss"]:
            found["alignment_loss"] = self._alignment(tokens, inputs, replaced)
        # Their weighted sum; the likelihood is logged by itself, as it compares with other runs.
        extras = [name for name in found if self.weights.get(name)]
        for name in extras:
            total = total + self.weights[name] * found[name]
        if extras:
            found["likelihood_loss"] = likelihood.detach()
        return found | {"loss": total}

    def _likelihood(
        self, tokens: Tensor, condition: dict[str, Tensor], inputs: Tensor
    ) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
        """The scheme's loss and accuracy, and (logits (B, T, V), tokens (B, T)) by vocabulary."""
        model, count = self.model, tokens.shape[1]
        if self.sparse is not None:
            output = model(inputs[:, :-1], return_logits=False, **condition)
            hidden = output.last_hidden_state[:, self.first : self.first + count]
            loss, accuracy = self.sparse(model.head, hidden, tokens)
            return {"loss": loss, "accuracy": accuracy}, []
        if self._in_chunks():
            output = model(inputs[:, :-1], return_logits=False, **condition)
            hidden = output.last_hidden_state[:, self.first : self.first + count]
            loss, accuracy = token_loss(model.scheme.predictor(model.head).linear, hidden, tokens)
            return {"loss": loss, "accuracy": accuracy}, []
        # One pair of logits and right answers a stage, which added losses look at too.
        output = model(inputs[:, :-1], labels=tokens, **condition)
        if output.semantic_logits is not None:
            logits = [output.semantic_logits, output.detail_logits]
            predicted = list(zip(logits, tokens.unbind(-1), strict=True))
        else:
            predicted = [(output.logits[:, self.first : self.first + count], tokens)]
        right = [(logits.detach().argmax(-1) == ids).float().mean() for logits, ids in predicted]
        return {"loss": output.loss, "accuracy": torch.stack(right).mean()}, predicted

    def _in_chunks(self) -> bool:
        """Whether this pass takes its loss from `token_loss`, which leaves no logits.

        Not in float16: it computes gradients before GradScaler has a say.
        """
        kind = self.model.device.type
        half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        return self.chunked and not half and torch.is_grad_enabled()

    def _alignment(self, tokens: Tensor, inputs: Tensor, replaced: Tensor | None) -> Tensor:
        """reAR: hidden states point to the input's vector early, to the next token's one late."""
        early, late = self.states.pop("early"), self.states.pop("late")  # (B, P + T - 1, D)
        kept = None if replaced is None else (~replaced[:, :-1]).float()
        seen = self._vectors(inputs[:, :-1])  # (B, T - 1, d)
        first = self.first
        return alignment_loss(self.encoder_side(early[:, first + 1 :]), seen, kept) + (
            alignment_loss(self.decoder_side(late[:, first:]), self._vectors(tokens))
        )

    def _vectors(self, tokens: Tensor) -> Tensor:
        """Code vectors (B, T, d) of tokens; of a pair the one behind the other."""
        columns = tokens.unbind(-1) if self.columns > 1 else [tokens]
        tables = [getattr(self, f"vectors_{index}") for index in range(self.columns)]
        return torch.cat([t[ids] for t, ids in zip(tables, columns, strict=True)], dim=-1)


def model_condition(
    tokens: Tensor, labels: Tensor, features: Tensor | None = None, mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Arguments of the transformer that condition tokens (B, T) or (B, T, 2), all but the last.

    Args:
        labels: (B,) classes; unused with text.
        features, mask: (B, P, C) and (B, P) of captions.
    """
    if features is None:
        return {"class_labels": labels}
    visible = torch.cat([mask, mask.new_ones(len(mask), tokens.shape[1] - 1)], dim=1)
    return {"text_embeds": features, "attention_mask": visible}


class _Cuts(nn.Module):
    """Cuts (L, V) of a tree with their weights (L,), as buffers."""

    def __init__(self, cuts: Tensor, weights: Tensor):
        super().__init__()
        self.register_buffer("cuts", cuts, persistent=False)
        self.register_buffer("weights", weights, persistent=False)


class _Keep:
    """Forward hook: keeps a block's output while the model trains."""

    def __init__(self, states: dict[str, Tensor], name: str):
        self.states, self.name = states, name

    def __call__(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if module.training:
            self.states[self.name] = output


class TokenNoise:
    """Context noise for the tokens of a scheme; a pair's codes are replaced independently.

    Args:
        kind: "uniform" or "cluster".
        vectors: (V, d) of every vocabulary of a token.
        clusters: how many clusters of the tree "cluster" draws in.

    Raises:
        ValueError: more clusters than codes.
    """

    def __init__(self, kind: str, vectors: list, clusters: int):
        self.noises = []
        for rows in vectors:
            if kind == "cluster" and not 1 <= clusters <= len(rows):
                raise ValueError(
                    f"context_noise_clusters is {clusters}; with {len(rows)} codes it must be "
                    f"from 1 to {len(rows)}."
                )
            cluster_of = tree_cuts(rows, [clusters])[0] if kind == "cluster" else None
            self.noises.append(ContextNoise(len(rows), cluster_of))

    def __call__(self, tokens: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """Tokens (B, T) or (B, T, 2) with some replaced, and where (B, T)."""
        if len(self.noises) == 1:
            return self.noises[0](tokens, rate)
        columns = tokens.unbind(-1)
        drawn = [noise(ids, rate) for noise, ids in zip(self.noises, columns, strict=True)]
        where = torch.stack([replaced for _, replaced in drawn]).any(0)
        return torch.stack([ids for ids, _ in drawn], dim=-1), where
