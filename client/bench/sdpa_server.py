#!/usr/bin/env python3
"""The attention server that one would write in an afternoon: gRPC in Python, torch's attention on the GPU.

It speaks enough of the API for attention_bench, so that both servers can be measured with the same messages. Every
sequence has its keys and values in one tensor, allocated for its longest; each message is computed as it comes, item by
item, on the thread of its stream.

    protoc --python_out=. --proto_path=proto/santa/attention/v1 attention.proto
    client/bench/sdpa_server.py --port=50052
    attention_bench --server=127.0.0.1:50052 --clients=16 --tokens=32768 --append

Needs grpcio, protobuf and torch; attention_pb2.py in the working directory or on PYTHONPATH.
"""

import argparse
import concurrent.futures
import itertools
import os
import sys
import threading
import time

import grpc
import torch

sys.path.insert(0, os.getcwd())
import attention_pb2 as pb  # noqa: E402

SERVICE = "santa.attention.v1.AttentionService"
DTYPES = {
    pb.DATA_TYPE_FLOAT32: torch.float32,
    pb.DATA_TYPE_BFLOAT16: torch.bfloat16,
    pb.DATA_TYPE_FLOAT16: torch.float16,
}


class Server:
    def __init__(self, options):
        self.options = options
        self.device = torch.device(options.device)
        self.lock = threading.Lock()
        self.sequences = {}  # id -> [layers, K|V, H_kv, tokens, D], and the lengths of its layers
        self.ids = itertools.count(1)

    def to_device(self, tensor):
        data = torch.frombuffer(bytearray(tensor.data), dtype=DTYPES[tensor.dtype])
        return data.view(tuple(tensor.shape)).to(self.device)

    def store(self, sequence, layer, position, k, v):
        cache, lengths = sequence
        tokens = k.shape[0]
        cache[layer, 0, :, position : position + tokens] = self.to_device_layout(k)
        cache[layer, 1, :, position : position + tokens] = self.to_device_layout(v)
        lengths[layer] = max(lengths[layer], position + tokens)

    @staticmethod
    def to_device_layout(tensor):  # [tokens, H_kv, D] to [H_kv, tokens, D]
        return tensor.transpose(0, 1).to(torch.bfloat16)

    def info(self, _request, _context):
        o = self.options
        return pb.ServerInfo(
            version="0",
            backend="torch",
            device=torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            layout=pb.KvLayout(
                num_layers=o.num_layers,
                num_query_heads=o.num_query_heads,
                num_kv_heads=o.num_kv_heads,
                head_dim=o.head_dim,
                dtype=pb.DATA_TYPE_BFLOAT16,
                page_size=64,
            ),
            methods=[pb.METHOD_EXACT],
            limits=pb.Limits(
                max_sequences=100000,
                max_tokens_per_sequence=o.max_tokens,
                total_pages=1 << 30,
                max_items_per_request=256,
                max_message_bytes=64 << 20,
                max_sample_count=1,
                max_lease_seconds=86400,
                default_lease_seconds=600,
            ),
            free_pages=1 << 30,
        )

    def create(self, _request, _context):
        o = self.options
        shape = (o.num_layers, 2, o.num_kv_heads, o.max_tokens, o.head_dim)
        with self.lock:
            number = next(self.ids)
            self.sequences[number] = (
                torch.empty(shape, dtype=torch.bfloat16, device=self.device),
                [0] * o.num_layers,
            )
        return pb.Sequence(handle=pb.SequenceHandle(id=number, generation=1), lengths=[0] * o.num_layers)

    def release(self, request, _context):
        with self.lock:
            self.sequences.pop(request.handle.id, None)
        return pb.ReleaseSequenceResponse()

    def get(self, request, _context):
        lengths = self.sequences[request.handle.id][1]
        return pb.Sequence(handle=request.handle, lengths=lengths, num_tokens=min(lengths))

    def append(self, requests, _context):
        handle, tokens = None, 0
        for chunk in requests:
            handle = chunk.handle if chunk.HasField("handle") else handle
            k, v = self.to_device(chunk.k), self.to_device(chunk.v)
            self.store(self.sequences[handle.id], chunk.layer, chunk.position, k, v)
            tokens += k.shape[0]
        lengths = self.sequences[handle.id][1]
        sequence = pb.Sequence(handle=handle, lengths=lengths, num_tokens=min(lengths))
        return pb.AppendKvResponse(sequence=sequence, tokens_appended=tokens)

    def answer(self, layer, item):
        begin = time.perf_counter()
        sequence = self.sequences[item.handle.id]
        if item.HasField("k"):
            self.store(sequence, layer, item.position, self.to_device(item.k), self.to_device(item.v))
        q = self.to_device(item.q)[0]  # [H, D]
        k, v = sequence[0][layer, :, None, :, : item.position + 1]  # each [1, H_kv, n, D]
        # The query heads that share a key/value head, as that many queries of it: one pass over k and v.
        grouped = q.view(1, k.shape[1], -1, q.shape[-1]).to(torch.bfloat16)
        o = torch.nn.functional.scaled_dot_product_attention(grouped, k, v)
        data = o.to(q.dtype).contiguous().cpu().view(torch.uint8).numpy().tobytes()
        result = pb.AttendResult(
            status=pb.ItemStatus(),
            o=pb.Tensor(dtype=item.q.dtype, shape=item.q.shape, data=data),
        )
        if item.options.want_statistics:
            result.statistics.device_seconds = time.perf_counter() - begin
            result.statistics.batch_items = 1
        return result

    def attend(self, requests, _context):
        for request in requests:
            results = [self.answer(request.layer, item) for item in request.items]
            yield pb.AttendResponse(request_id=request.request_id, results=results)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=50052)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--num_layers", type=int, default=1)
    parser.add_argument("--num_query_heads", type=int, default=32)
    parser.add_argument("--num_kv_heads", type=int, default=8)
    parser.add_argument("--head_dim", type=int, default=128)
    parser.add_argument("--max_tokens", type=int, default=65536)
    parser.add_argument("--threads", type=int, default=64)
    options = parser.parse_args()
    # cuDNN would plan anew for every length, that is for every step: 40 ms each on an H100.
    torch.backends.cuda.enable_cudnn_sdp(False)
    server = Server(options)

    def unary(function, request):
        return grpc.unary_unary_rpc_method_handler(
            function, request.FromString, lambda message: message.SerializeToString()
        )

    handlers = {
        "GetServerInfo": unary(server.info, pb.GetServerInfoRequest),
        "CreateSequence": unary(server.create, pb.CreateSequenceRequest),
        "ReleaseSequence": unary(server.release, pb.ReleaseSequenceRequest),
        "GetSequence": unary(server.get, pb.GetSequenceRequest),
        "AppendKv": grpc.stream_unary_rpc_method_handler(
            server.append, pb.AppendKvRequest.FromString, lambda message: message.SerializeToString()
        ),
        "Attend": grpc.stream_stream_rpc_method_handler(
            server.attend, pb.AttendRequest.FromString, lambda message: message.SerializeToString()
        ),
    }
    limit = [("grpc.max_receive_message_length", 64 << 20)]
    grpc_server = grpc.server(concurrent.futures.ThreadPoolExecutor(options.threads), options=limit)
    grpc_server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    port = grpc_server.add_insecure_port(f"127.0.0.1:{options.port}")
    with torch.inference_mode():
        grpc_server.start()
        print(f"serving on port {port}", flush=True)
        grpc_server.wait_for_termination()


if __name__ == "__main__":
    main()
