"""make_image.py ROOTFS.tar IMAGE.tar [NAME=VALUE...]: an OCI image of one layer, without a daemon.

IMAGE.tar is an OCI image layout (https://github.com/opencontainers/image-spec, image-layout.md) in an archive, which
skopeo calls oci-archive. NAME=VALUE: the environment. The configuration agrees with the Dockerfile's; image_test.py
compares them. The same input gives the same bytes.
"""

import gzip
import hashlib
import io
import json
import platform
import sys
import tarfile

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
EPOCH = "1970-01-01T00:00:00Z"


def encode(document):
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def digest(blob):
    return "sha256:" + hashlib.sha256(blob).hexdigest()


def main():
    rootfs, archive, *environment = sys.argv[1:]
    with open(rootfs, "rb") as file:
        layer = file.read()
    blobs = {}

    def store(media_type, blob):
        blobs[digest(blob)] = blob
        return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": digest(blob), "size": len(blob)}

    layer_descriptor = store("layer.v1.tar+gzip", gzip.compress(layer, mtime=0))
    platform_name = {"architecture": ARCHITECTURES[platform.machine()], "os": "linux"}
    config_descriptor = store(
        "config.v1+json",
        encode(
            {
                **platform_name,
                "created": EPOCH,
                "config": {
                    "User": "65532:65532",
                    "Entrypoint": ["/usr/bin/attention_server"],
                    "ExposedPorts": {"50051/tcp": {}, "9464/tcp": {}},
                    "Env": environment,
                    "WorkingDir": "/",
                    "StopSignal": "SIGTERM",
                    "Labels": {
                        "org.opencontainers.image.title": "attention-server",
                        "org.opencontainers.image.licenses": "Apache-2.0",
                    },
                },
                "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
                "history": [{"created": EPOCH, "created_by": "make_image.py"}],
            }
        ),
    )
    manifest_descriptor = store(
        "manifest.v1+json",
        encode(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config_descriptor,
                "layers": [layer_descriptor],
            }
        ),
    )
    files = {
        "oci-layout": encode({"imageLayoutVersion": "1.0.0"}),
        "index.json": encode(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.index.v1+json",
                "manifests": [
                    {
                        **manifest_descriptor,
                        "platform": platform_name,
                        "annotations": {"org.opencontainers.image.ref.name": "attention-server"},
                    }
                ],
            }
        ),
        **{"blobs/" + name.replace(":", "/"): blob for name, blob in blobs.items()},
    }
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
        for path, content in sorted(files.items()):
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    main()
