"""A throw-away Orthanc with DICOMweb, for the tests of the MONAI Label application."""

import json
import subprocess
from contextlib import suppress
from pathlib import Path

import requests
from forked_program import wait_until

PROGRAM = Path("/usr/sbin/Orthanc")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def missing_parts():
    """What of Debian's packages is not installed, as a reason to skip; "" if all is there."""
    packages = {"orthanc": PROGRAM, "orthanc-dicomweb": PLUGIN}
    return ", ".join(name for name, file in packages.items() if not file.exists())


class Orthanc:
    """Orthanc as a subprocess, with its storage in a folder.

    Orthanc 1.12.7 listens on all interfaces whatever ``HttpBindAddresses`` says, so ``RemoteAccessAllowed`` refuses
    what does not come from this machine. `make test-orthanc` moreover runs in a network namespace of its own.
    """

    def __init__(self, folder, port):
        folder.mkdir()
        self.url = f"http://127.0.0.1:{port}"
        self.dicom_web_url = f"{self.url}/dicom-web"
        settings = {
            "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"),
            "Plugins": [str(PLUGIN)], "HttpPort": port, "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
            "DicomServerEnabled": False, "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }  # fmt: skip
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self._log = (folder / "orthanc.log").open("wb")
        self._process = subprocess.Popen([PROGRAM, folder / "orthanc.json"], stdout=self._log, stderr=self._log)

    def wait(self, timeout_s=60):
        """Return when the server answers."""

        def answers():
            assert self._process.poll() is None
            with suppress(requests.RequestException):
                return requests.get(f"{self.url}/system", timeout=5).ok

        assert wait_until(answers, timeout_s)

    def upload(self, folder):
        """Store the DICOM files of one series; return its SeriesInstanceUID."""
        answers = []
        for file in sorted(folder.glob("*.dcm")):
            answer = requests.post(f"{self.url}/instances", data=file.read_bytes(), timeout=30)
            answer.raise_for_status()
            answers.append(answer.json())
        (series,) = {answer["ParentSeries"] for answer in answers}
        return self._tags("series", series)["SeriesInstanceUID"]

    def series(self):
        """All series: ``Modality``, ``SeriesInstanceUID``, ``SeriesDescription``, ``StudyInstanceUID``."""
        ids = requests.get(f"{self.url}/series", timeout=30).json()
        return [self._tags("series", one) | self._tags("series", one, "study") for one in ids]

    def instances(self, series_uid):
        """The DICOM files of a series."""
        found = requests.post(f"{self.url}/tools/lookup", data=series_uid, timeout=30).json()
        ids = requests.get(f"{self.url}/series/{found[0]['ID']}", timeout=30).json()["Instances"]
        return [requests.get(f"{self.url}/instances/{one}/file", timeout=30).content for one in ids]

    def close(self):
        """Stop the server."""
        self._process.terminate()
        self._process.wait(30)
        self._log.close()

    def _tags(self, level, one, parent=""):
        answer = requests.get("/".join(filter(None, [self.url, level, one, parent])), timeout=30)
        answer.raise_for_status()
        return answer.json()["MainDicomTags"]
