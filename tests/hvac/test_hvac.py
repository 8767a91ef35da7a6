"""kv and sys over the Vault API by hvac, a client that nobody here wrote.

The environment says where the cluster is: KEYSTEAD_LEADER, KEYSTEAD_STANDBY, KEYSTEAD_CA, KEYSTEAD_TOKEN,
KEYSTEAD_SHARES (comma-separated). Every test runs against the leader and against a standby.
"""

import os
import unittest

import hvac
from hvac import exceptions

CA = os.environ["KEYSTEAD_CA"]
TOKEN = os.environ["KEYSTEAD_TOKEN"]
SHARES = os.environ["KEYSTEAD_SHARES"].split(",")


class Place:
    """The tests; subclasses say through which node."""

    variable = ""

    def setUp(self):
        self.url = os.environ[self.variable]
        self.client = hvac.Client(url=self.url, token=TOKEN, verify=CA)
        self.kv2 = self.client.secrets.kv.v2
        self.kv1 = self.client.secrets.kv.v1

    def path(self, name):
        return f"hvac/{type(self).__name__}/{name}"

    def test_a_client_with_the_token_is_authenticated(self):
        self.assertTrue(self.client.is_authenticated())
        own = self.client.auth.token.lookup_self()["data"]
        self.assertEqual(own["policies"], ["root"])
        stranger = hvac.Client(url=self.url, token="hvs.wrong", verify=CA)
        self.assertFalse(stranger.is_authenticated())
        with self.assertRaises(exceptions.Forbidden):
            stranger.secrets.kv.v2.read_secret_version("x", raise_on_deleted_version=True)

    def test_kv2_versions(self):
        path = self.path("versions")
        for n in (1, 2, 3):
            made = self.kv2.create_or_update_secret(path, secret={"n": n, "text": "ä <b>&"})
            self.assertEqual(made["data"]["version"], n)
        read = self.kv2.read_secret_version(path, raise_on_deleted_version=True)
        self.assertEqual(read["data"]["data"], {"n": 3, "text": "ä <b>&"})
        read = self.kv2.read_secret_version(path, version=1, raise_on_deleted_version=True)
        self.assertEqual(read["data"]["data"]["n"], 1)
        self.assertEqual(read["data"]["metadata"]["version"], 1)

    def test_kv2_check_and_set(self):
        path = self.path("cas")
        self.kv2.create_or_update_secret(path, secret={"n": 0}, cas=0)
        with self.assertRaises(exceptions.InvalidRequest) as caught:
            self.kv2.create_or_update_secret(path, secret={"n": 9}, cas=0)
        self.assertIn("check-and-set", str(caught.exception))
        self.kv2.create_or_update_secret(path, secret={"n": 1}, cas=1)

    def test_kv2_delete_undelete_destroy(self):
        path = self.path("life")
        for n in (1, 2):
            self.kv2.create_or_update_secret(path, secret={"n": n})
        self.kv2.delete_latest_version_of_secret(path)
        with self.assertRaises(exceptions.InvalidPath):
            self.kv2.read_secret_version(path, raise_on_deleted_version=True)
        self.kv2.undelete_secret_versions(path, versions=[2])
        read = self.kv2.read_secret_version(path, raise_on_deleted_version=True)
        self.assertEqual(read["data"]["data"]["n"], 2)
        self.kv2.delete_secret_versions(path, versions=[1])
        self.kv2.destroy_secret_versions(path, versions=[1])
        versions = self.kv2.read_secret_metadata(path)["data"]["versions"]
        self.assertTrue(versions["1"]["destroyed"])
        self.assertFalse(versions["2"]["destroyed"])
        self.kv2.delete_metadata_and_all_versions(path)
        with self.assertRaises(exceptions.InvalidPath):
            self.kv2.read_secret_metadata(path)

    def test_kv2_lists_folders(self):
        for name in ("list/a", "list/b", "list/deep/c"):
            self.kv2.create_or_update_secret(self.path(name), secret={"x": "y"})
        keys = self.kv2.list_secrets(self.path("list"))["data"]["keys"]
        self.assertEqual(keys, ["a", "b", "deep/"])
        with self.assertRaises(exceptions.InvalidPath):
            self.kv2.list_secrets(self.path("nothing"))

    def test_kv2_metadata_and_max_versions(self):
        path = self.path("meta")
        self.kv2.update_metadata(path, max_versions=2, cas_required=False)
        for n in range(4):
            self.kv2.create_or_update_secret(path, secret={"n": n})
        data = self.kv2.read_secret_metadata(path)["data"]
        self.assertEqual((data["max_versions"], data["oldest_version"], data["current_version"]), (2, 3, 4))
        self.assertEqual(sorted(data["versions"]), ["3", "4"])

    def test_kv1(self):
        mount = f"kv1-{type(self).__name__}".lower()
        self.client.sys.enable_secrets_engine("kv", path=mount, options={"version": "1"})
        try:
            self.kv1.create_or_update_secret("a/b", secret={"x": 1, "y": [True, None, 2.5]}, mount_point=mount)
            read = self.kv1.read_secret("a/b", mount_point=mount)
            self.assertEqual(read["data"], {"x": 1, "y": [True, None, 2.5]})
            self.assertEqual(read["lease_duration"], 2764800)
            self.assertEqual(self.kv1.list_secrets("", mount_point=mount)["data"]["keys"], ["a/"])
            self.kv1.delete_secret("a/b", mount_point=mount)
            with self.assertRaises(exceptions.InvalidPath):
                self.kv1.read_secret("a/b", mount_point=mount)
        finally:
            self.client.sys.disable_secrets_engine(mount)

    def test_mounts(self):
        mounts = self.client.sys.list_mounted_secrets_engines()["data"]
        self.assertEqual(mounts["secret/"]["type"], "kv")
        self.assertEqual(mounts["secret/"]["options"], {"version": "2"})
        with self.assertRaises(exceptions.InvalidRequest):
            self.client.sys.enable_secrets_engine("kv", path="secret")
        with self.assertRaises(exceptions.InvalidRequest):
            self.client.sys.enable_secrets_engine("nosuch", path="elsewhere")

    def test_status(self):
        self.assertTrue(self.client.sys.is_initialized())
        self.assertFalse(self.client.sys.is_sealed())
        status = self.client.sys.read_seal_status()
        self.assertEqual((status["t"], status["n"], status["storage_type"]), (3, 5, "raft"))
        leader = self.client.sys.read_leader_status()
        self.assertEqual(leader["is_self"], self.variable == "KEYSTEAD_LEADER")
        self.assertEqual(leader["leader_address"], os.environ["KEYSTEAD_LEADER"])
        health = self.client.sys.read_health_status(method="GET")
        self.assertEqual(getattr(health, "status_code", 200), 200 if leader["is_self"] else 429)
        self.assertEqual(self.client.sys.get_encryption_key_status()["data"]["term"], 1)
        servers = self.client.sys.read_raft_config()["data"]["config"]["servers"]
        self.assertEqual([server["voter"] for server in servers], [True] * 3)


class ThroughTheLeader(Place, unittest.TestCase):
    variable = "KEYSTEAD_LEADER"


class ThroughAStandby(Place, unittest.TestCase):
    variable = "KEYSTEAD_STANDBY"

    def test_zz_seal_and_unseal(self):
        """Last, for it takes the standby away for a moment."""
        self.client.sys.seal()
        self.assertTrue(self.client.sys.is_sealed())
        with self.assertRaises(exceptions.VaultDown):
            self.kv2.read_secret_version("x", raise_on_deleted_version=True)
        status = self.client.sys.submit_unseal_keys(SHARES[:3])
        self.assertFalse(status["sealed"])
        self.kv2.create_or_update_secret(self.path("after"), secret={"n": 1})


if __name__ == "__main__":
    unittest.main(verbosity=2)
