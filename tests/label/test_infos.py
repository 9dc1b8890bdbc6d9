"""What clients store beside images and labels can be sent back, and does not stop the strategies."""

import io
import tarfile

import pytest

pytest.importorskip("monailabel", reason="MONAI Label is not installed")

BAD = ['{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}', "[1]", "5", "{", "[" * 100_000]
BAD_STRATEGIES = ['{"strategy": [1]}', '{"strategy": 5}', '{"strategy": {"a": 5}}', '{"strategy": {"a": {"ts": "x"}}}']


def test_what_cannot_be_sent_back_is_not_stored(serve, bundle_3d, studies_3d):
    client = serve(bundle_3d, studies_3d).client
    image, other = list(studies_3d.source.values())[:2]
    client.put("/datastore/label?image=hippocampus_001&tag=final", files={"label": ("a.nii.gz", image.read_bytes())})
    for text in [*BAD, *BAD_STRATEGIES]:
        scan = {"file": ("a.nii.gz", other.read_bytes())}
        label = {"label": ("a.nii.gz", image.read_bytes())}
        for response in (
            client.put("/datastore/image?image=new", files=scan, data={"params": text}),
            client.put("/datastore/image/info?image=hippocampus_001", data={"info": text}),
            client.put("/datastore/label?image=hippocampus_001&tag=final", files=label, data={"params": text}),
            client.put("/datastore/label/info?label=hippocampus_001&tag=final", data={"info": text}),
        ):
            assert response.status_code == 400, response.text
            assert response.json()["detail"].startswith(("params: ", "info: "))
    assert client.get("/datastore/?output=all").status_code == 200
    assert client.post("/activelearning/random", json={}).status_code == 200


def test_archives_are_not_unpacked(serve, bundle_3d, studies_3d, tmp_path):
    client, target = serve(bundle_3d, studies_3d).client, tmp_path / "outside.txt"
    with tarfile.open(fileobj=(archive := io.BytesIO()), mode="w:gz") as writer:
        member = tarfile.TarInfo("../" * 12 + str(target)[1:])
        member.size = 1
        writer.addfile(member, io.BytesIO(b"x"))
    response = client.put("/session/?uncompress=true", files={"files": ("a.tar.gz", archive.getvalue())})
    assert (response.status_code, response.json()["detail"][:12]) == (400, "uncompress: ")
    assert not target.exists()


def test_a_batch_with_wrong_values_is_refused(serve, bundle_3d, studies_3d):
    client = serve(bundle_3d, studies_3d).client
    for values in ({"images": 5}, {"max_batch_size": "x"}, {"max_batch_size": 1.5}):
        response = client.post("/batch/infer/diffae_encode?run_sync=true", json=values)
        assert (response.status_code, response.json()["detail"].split(":")[0]) == (400, *values)
