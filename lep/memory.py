"""How much memory the training of embeddings takes, from the size of a model alone."""

TRAINED_BYTES = 16  # float32 value, gradient and the two moments of AdamW


def training_bytes(
    parameters: int,
    *,
    vocabulary: int,
    hidden: int,
    tied: bool,
    new_vocabulary: int,
    trained_rows: int,
    body_bytes: int,
) -> int:
    """Bytes on the training device: frozen body, frozen rows, trained rows with their gradients and moments.

    parameters: of the base model, its tables of `vocabulary` rows included. body_bytes: of a frozen weight, 2 in
    bfloat16 and 4 in float32. Activations come on top: they grow with the tokens of a batch, not with the vocabulary.
    """
    tables = 1 if tied else 2
    body = parameters - tables * vocabulary * hidden
    frozen = tables * (new_vocabulary - trained_rows) * hidden
    return (body + frozen) * body_bytes + tables * trained_rows * hidden * TRAINED_BYTES
