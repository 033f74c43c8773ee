"""A known client of the Open Inference Protocol, in an environment of its own: it wants another urllib3 than TorchX.

python triton_client.py PORT MODEL INPUTS.npz OUTPUTS.npz OUTPUT...

Sends the inputs as binary data and as JSON, and writes each output of both, binary/OUTPUT and json/OUTPUT.
"""

import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import np_to_triton_dtype

port, model, inputs, outputs, *names = sys.argv[1:]
columns = dict(np.load(inputs, allow_pickle=True))
client = triton.InferenceServerClient(f"127.0.0.1:{port}", network_timeout=120.0, connection_timeout=120.0)
assert client.is_server_live()
assert client.is_server_ready()
assert client.is_model_ready(model)
metadata = client.get_model_metadata(model)
assert set(names) <= {output["name"] for output in metadata["outputs"]}
found = {}
for kind, binary in {"binary": True, "json": False}.items():
    tensors = []
    for name, values in columns.items():
        tensors.append(triton.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype)))
        tensors[-1].set_data_from_numpy(values, binary_data=binary)
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    answer = client.infer(model, tensors, outputs=wanted)
    assert answer.get_response()["model_version"] == metadata["versions"][0]
    found |= {f"{kind}/{name}": answer.as_numpy(name) for name in names}
np.savez(outputs, **found)
