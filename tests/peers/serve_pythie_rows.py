"""pythie-serving as it is, but for one rule: an input of shape [N] is read as [N, 1].

    .peers/pythie/bin/python tests/peers/serve_pythie_rows.py DIR/models.config --port PORT

It was made for tables and wants a column; TensorFlow Serving takes the shape of the model's
signature, which is [N] here. Everything else (its protocol code, its server, its limits, its
errors, how it reads and writes tensors) is pythie-serving's own.
"""

from typing import Any

from pythie_serving import run, sklearn_wrapper
from pythie_serving.sklearn_wrapper import SklearnPredictionServiceServicer as Columns


class Rows(Columns):
    """Adds the dimension that is missing."""

    @staticmethod
    def _parse_samples(request: Any, model_specs: Any) -> Any:
        for tensor in request.inputs.values():
            if len(tensor.tensor_shape.dim) == 1:
                tensor.tensor_shape.dim.add().size = 1
        return Columns._parse_samples(request, model_specs)


if __name__ == "__main__":
    # The server takes the class from the module when it starts.
    sklearn_wrapper.SklearnPredictionServiceServicer = Rows
    run.run()
