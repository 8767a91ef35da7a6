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

    def mounted(self, name, **how):
        """A kv mount that no other test knows, gone when the test ends."""
        path = f"{name}-{type(self).__name__}".lower()
        self.client.sys.enable_secrets_engine("kv", path=path, **how)
        self.addCleanup(self.client.sys.disable_secrets_engine, path)
        return path

    @property
    def leads(self):
        return self.variable == "KEYSTEAD_LEADER"

    def test_a_snapshot_is_taken_and_restored(self):
        path = self.path("snapshot")
        self.kv2.create_or_update_secret(path, secret={"n": 1})
        snapshot = self.client.sys.take_raft_snapshot().content
        self.assertEqual(snapshot[:2], b"\x1f\x8b")
        self.kv2.create_or_update_secret(path, secret={"n": 2})
        with self.assertRaises(exceptions.InvalidRequest):
            self.client.sys.restore_raft_snapshot(snapshot[:-100])
        self.assertEqual(self.kv2.read_secret_version(path, raise_on_deleted_version=True)["data"]["data"], {"n": 2})
        # A standby names the leader, and the client goes there.
        self.assertEqual(self.client.sys.restore_raft_snapshot(snapshot).status_code, 204)
        self.assertEqual(self.kv2.read_secret_version(path, raise_on_deleted_version=True)["data"]["data"], {"n": 1})

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

    def test_kv2_patch_is_a_read_and_a_checked_write(self):
        path = self.path("patch")
        with self.assertRaises(exceptions.InvalidPath):
            self.kv2.patch(path, secret={"b": 2})
        self.kv2.create_or_update_secret(path, secret={"a": 1, "b": 1})
        self.assertEqual(self.kv2.patch(path, secret={"b": 2, "c": None})["data"]["version"], 2)
        read = self.kv2.read_secret(path, raise_on_deleted_version=True)
        self.assertEqual(read["data"]["data"], {"a": 1, "b": 2, "c": None})

    def test_kv2_tells_of_a_deleted_version_if_asked_to(self):
        path = self.path("deleted")
        self.kv2.create_or_update_secret(path, secret={"n": 1})
        self.kv2.delete_latest_version_of_secret(path)
        read = self.kv2.read_secret(path, raise_on_deleted_version=False)
        self.assertIsNone(read["data"]["data"])
        self.assertNotEqual(read["data"]["metadata"]["deletion_time"], "")
        with self.assertRaises(exceptions.InvalidPath):
            self.kv2.read_secret(self.path("never"), raise_on_deleted_version=False)

    def test_kv2_configuration(self):
        mount = self.mounted("configured", options={"version": "2"})
        fresh = self.kv2.read_configuration(mount_point=mount)["data"]
        self.assertEqual(fresh, {"cas_required": False, "delete_version_after": "0s", "max_versions": 0})
        self.kv2.configure(max_versions=1, cas_required=True, delete_version_after="90m", mount_point=mount)
        read = self.kv2.read_configuration(mount_point=mount)["data"]
        self.assertEqual(read, {"cas_required": True, "delete_version_after": "1h30m0s", "max_versions": 1})
        with self.assertRaises(exceptions.InvalidRequest):
            self.kv2.create_or_update_secret("a", secret={}, mount_point=mount)
        for cas in (0, 1):
            made = self.kv2.create_or_update_secret("a", secret={"n": cas}, cas=cas, mount_point=mount)
            self.assertNotEqual(made["data"]["deletion_time"], "")
        versions = self.kv2.read_secret_metadata("a", mount_point=mount)["data"]["versions"]
        self.assertEqual(list(versions), ["2"])
        with self.assertRaises(exceptions.InvalidRequest):
            self.kv2.configure(delete_version_after="soon", mount_point=mount)

    def test_kv2_custom_metadata(self):
        path = self.path("custom")
        about = {"owner": "ä", "team": "b"}
        self.kv2.update_metadata(path, custom_metadata=about, cas_required=True, delete_version_after="2h")
        data = self.kv2.read_secret_metadata(path)["data"]
        self.assertEqual(data["custom_metadata"], about)
        self.assertEqual((data["cas_required"], data["delete_version_after"]), (True, "2h0m0s"))
        made = self.kv2.create_or_update_secret(path, secret={"n": 1}, cas=0)
        self.assertEqual(made["data"]["custom_metadata"], about)
        read = self.kv2.read_secret_version(path, raise_on_deleted_version=True)
        self.assertEqual(read["data"]["metadata"]["custom_metadata"], about)
        with self.assertRaises(exceptions.InvalidRequest):
            self.kv2.update_metadata(path, custom_metadata={str(n): "x" for n in range(65)})
        with self.assertRaises(exceptions.InvalidRequest):
            self.kv2.update_metadata(path, custom_metadata={"k": "x" * 513})
        self.assertEqual(self.kv2.read_secret_metadata(path)["data"]["custom_metadata"], about)

    def test_kv2_wrong_calls(self):
        with self.assertRaises(exceptions.InvalidPath):
            self.kv2.read_secret("a", mount_point="nosuch", raise_on_deleted_version=True)
        with self.assertRaises(exceptions.InvalidPath):
            self.kv2.create_or_update_secret("a", secret={}, mount_point="nosuch")
        with self.assertRaises(exceptions.InvalidRequest):
            self.kv2.create_or_update_secret(self.path("wrong"), secret="text")
        with self.assertRaises(exceptions.InvalidRequest):
            self.kv2.create_or_update_secret(self.path("wrong"), secret={}, cas="first")
        with self.assertRaises(exceptions.InvalidRequest):
            self.kv2.read_secret_version(self.path("wrong"), version="first", raise_on_deleted_version=True)
        with self.assertRaises(exceptions.InvalidRequest):
            self.kv2.destroy_secret_versions(self.path("wrong"), versions=["first"])
        with self.assertRaises(exceptions.InvalidPath):
            self.kv2.read_secret_metadata(self.path("wrong"))

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
        mount = self.mounted("kv1", options={"version": "1"})
        self.kv1.create_or_update_secret("a/b", secret={"x": 1, "y": [True, None, 2.5]}, mount_point=mount)
        read = self.kv1.read_secret("a/b", mount_point=mount)
        self.assertEqual(read["data"], {"x": 1, "y": [True, None, 2.5]})
        self.assertEqual((read["lease_duration"], read["lease_id"], read["renewable"]), (2764800, "", False))
        for method, ttl, seconds in (("POST", "90m", 5400), ("PUT", 60, 60), (None, "2h", 7200)):
            self.kv1.create_or_update_secret("a/b", secret={"ttl": ttl}, method=method, mount_point=mount)
            read = self.kv1.read_secret("a/b", mount_point=mount)
            self.assertEqual((read["data"], read["lease_duration"]), ({"ttl": ttl}, seconds))
        self.assertEqual(self.kv1.list_secrets("", mount_point=mount)["data"]["keys"], ["a/"])
        self.assertEqual(self.kv1.list_secrets("a", mount_point=mount)["data"]["keys"], ["b"])
        self.kv1.delete_secret("a/b", mount_point=mount)
        self.kv1.delete_secret("a/b", mount_point=mount)
        with self.assertRaises(exceptions.InvalidPath):
            self.kv1.read_secret("a/b", mount_point=mount)
        with self.assertRaises(exceptions.InvalidPath):
            self.kv1.list_secrets("a", mount_point=mount)
        with self.assertRaises(exceptions.InvalidRequest):
            self.kv1.create_or_update_secret("a", secret={}, method="POST", mount_point=mount)

    def test_paths_without_a_method_of_their_own(self):
        mount = self.mounted("generic")
        self.assertIsNone(self.client.read(f"{mount}/a"))
        self.assertIsNone(self.client.list(mount))
        self.client.write(f"{mount}/a", x=1)
        self.client.write_data(f"{mount}/b", data={"path": "p", "wrap_ttl": "w"})
        self.assertEqual(self.client.read(f"{mount}/a")["data"], {"x": 1})
        self.assertEqual(self.client.read(f"{mount}/b")["data"], {"path": "p", "wrap_ttl": "w"})
        self.assertEqual(self.client.list(mount)["data"]["keys"], ["a", "b"])
        self.client.delete(f"{mount}/a")
        self.assertEqual(self.client.list(mount)["data"]["keys"], ["b"])

    def test_mounts(self):
        mounts = self.client.sys.list_mounted_secrets_engines()["data"]
        self.assertEqual(mounts["secret/"]["type"], "kv")
        self.assertEqual(mounts["secret/"]["options"], {"version": "2"})
        self.assertEqual(self.client.sys.retrieve_mount_option("secret", "version"), "2")
        self.assertEqual(self.client.sys.retrieve_mount_option("sys", "version", "none"), "none")
        with self.assertRaises(exceptions.InvalidRequest):
            self.client.sys.enable_secrets_engine("kv", path="secret")
        with self.assertRaises(exceptions.InvalidRequest):
            self.client.sys.enable_secrets_engine("nosuch", path="elsewhere")
        with self.assertRaises(exceptions.InvalidRequest):
            self.client.sys.enable_secrets_engine("kv", path="sys/below")
        with self.assertRaises(exceptions.InvalidRequest):
            self.client.sys.disable_secrets_engine("sys")
        self.client.sys.disable_secrets_engine("never-there")

    def test_mounts_are_tuned(self):
        config = {"default_lease_ttl": "1h", "max_lease_ttl": "2h", "listing_visibility": "unauth"}
        mount = self.mounted("tuned", config=config, description="first")
        read = self.client.sys.read_mount_configuration(mount)["data"]
        self.assertEqual((read["default_lease_ttl"], read["max_lease_ttl"]), (3600, 7200))
        self.assertEqual((read["description"], read["listing_visibility"]), ("first", "unauth"))
        self.kv1.create_or_update_secret("a", secret={"x": 1}, mount_point=mount)
        self.assertEqual(self.kv1.read_secret("a", mount_point=mount)["lease_duration"], 3600)
        self.client.sys.tune_mount_configuration(
            mount,
            default_lease_ttl="5m",
            max_lease_ttl=600,
            description="second",
            audit_non_hmac_request_keys=["a", "b"],
            audit_non_hmac_response_keys="c,d",
            listing_visibility="hidden",
            passthrough_request_headers=["X-One"],
            allowed_response_headers=["X-Two"],
        )
        read = self.client.sys.read_mount_configuration(mount)["data"]
        wanted = {
            "default_lease_ttl": 300,
            "max_lease_ttl": 600,
            "description": "second",
            "audit_non_hmac_request_keys": ["a", "b"],
            "audit_non_hmac_response_keys": ["c", "d"],
            "listing_visibility": "hidden",
            "passthrough_request_headers": ["X-One"],
            "allowed_response_headers": ["X-Two"],
        }
        self.assertEqual({name: read[name] for name in wanted}, wanted)
        shown = self.client.sys.list_mounted_secrets_engines()["data"][f"{mount}/"]
        self.assertEqual((shown["description"], shown["config"]["max_lease_ttl"]), ("second", 600))
        self.assertEqual(self.kv1.read_secret("a", mount_point=mount)["lease_duration"], 300)
        for wrong in ({"listing_visibility": "loud"}, {"default_lease_ttl": "1d"}, {"max_lease_ttl": "soon"}):
            with self.assertRaises(exceptions.InvalidRequest):
                self.client.sys.tune_mount_configuration(mount, **wrong)
        with self.assertRaises(exceptions.InvalidRequest):
            self.client.sys.read_mount_configuration("nosuch")
        with self.assertRaises(exceptions.InvalidRequest):
            self.client.sys.tune_mount_configuration("nosuch", description="x")

    def test_a_mount_gains_versions(self):
        mount = self.mounted("upgraded", options={"version": "1"})
        self.kv1.create_or_update_secret("a", secret={"x": 1}, mount_point=mount)
        self.client.sys.tune_mount_configuration(mount, options={"version": "2"})
        read = self.kv2.read_secret("a", mount_point=mount, raise_on_deleted_version=True)
        self.assertEqual((read["data"]["data"], read["data"]["metadata"]["version"]), ({"x": 1}, 1))
        self.assertEqual(self.client.sys.retrieve_mount_option(mount, "version"), "2")
        with self.assertRaises(exceptions.InvalidRequest):
            self.client.sys.tune_mount_configuration(mount, options={"version": "1"})

    def test_a_mount_is_moved(self):
        mount = self.mounted("moved", options={"version": "2"})
        self.kv2.create_or_update_secret("a", secret={"x": 1}, mount_point=mount)
        there = f"deeper/{mount}"
        made = self.client.sys.move_backend(mount, there)["data"]
        status = self.client.read(f"sys/remount/status/{made['migration_id']}")["data"]
        self.assertEqual(
            status["migration_info"],
            {"source_mount": f"{mount}/", "target_mount": f"{there}/", "status": "success"},
        )
        read = self.kv2.read_secret("a", mount_point=there, raise_on_deleted_version=True)
        self.assertEqual(read["data"]["data"], {"x": 1})
        with self.assertRaises(exceptions.InvalidPath):
            self.kv2.read_secret("a", mount_point=mount, raise_on_deleted_version=True)
        for wrong in (("nosuch", "other"), (there, "secret"), (there, "sys/x"), ("sys", "other"), ("", "other")):
            with self.assertRaises(exceptions.InvalidRequest):
                self.client.sys.move_backend(*wrong)
        self.client.sys.move_backend(there, mount)
        self.assertEqual(self.kv2.list_secrets("", mount_point=mount)["data"]["keys"], ["a"])

    def test_auth_methods(self):
        methods = self.client.sys.list_auth_methods()["data"]
        self.assertEqual((list(methods), methods["token/"]["type"]), (["token/"], "token"))
        read = self.client.sys.read_auth_method_tuning("token")["data"]
        self.assertEqual((read["default_lease_ttl"], read["token_type"]), (2764800, "default-service"))
        for wrong in (
            lambda: self.client.sys.enable_auth_method("nosuch"),
            lambda: self.client.sys.disable_auth_method("token"),
            lambda: self.client.sys.read_auth_method_tuning("nosuch"),
            lambda: self.client.sys.tune_auth_method("nosuch", description="x"),
        ):
            with self.assertRaises(exceptions.InvalidRequest):
                wrong()

    def test_tokens(self):
        own = self.client.lookup_token()["data"]
        self.assertEqual((own["id"], own["path"], own["ttl"]), (TOKEN, "auth/token/root", 0))
        self.assertEqual(self.client.auth.token.lookup(TOKEN)["data"], own)
        self.assertEqual(self.client.lookup_token(TOKEN)["data"], own)
        with self.assertRaises(exceptions.Forbidden):
            self.client.auth.token.lookup("hvs.wrong")

    def test_status(self):
        self.assertTrue(self.client.sys.is_initialized())
        self.assertFalse(self.client.sys.is_sealed())
        status = self.client.sys.read_seal_status()
        self.assertEqual((status["t"], status["n"], status["storage_type"]), (3, 5, "raft"))
        leader = self.client.sys.read_leader_status()
        self.assertEqual(leader["is_self"], self.leads)
        self.assertEqual(leader["leader_address"], os.environ["KEYSTEAD_LEADER"])
        health = self.client.sys.read_health_status(method="GET")
        self.assertEqual(getattr(health, "status_code", 200), 200 if leader["is_self"] else 429)
        self.assertEqual(self.client.sys.get_encryption_key_status()["data"]["term"], 1)
        servers = self.client.sys.read_raft_config()["data"]["config"]["servers"]
        self.assertEqual([server["voter"] for server in servers], [True] * 3)
        self.assertEqual(self.client.sys.read_init_status(), {"initialized": True})
        self.assertEqual(self.client.seal_status["progress"], 0)
        self.assertEqual(self.client.key_status["term"], 1)
        self.assertEqual(self.client.ha_status["leader_address"], os.environ["KEYSTEAD_LEADER"])
        self.assertTrue(self.client.ha_status["ha_enabled"])

    def test_what_is_done_already(self):
        with self.assertRaises(exceptions.InvalidRequest) as caught:
            self.client.sys.initialize(secret_shares=1, secret_threshold=1)
        self.assertIn("already initialized", str(caught.exception))
        self.assertFalse(self.client.sys.submit_unseal_key(SHARES[0])["sealed"])
        with self.assertRaises(exceptions.InvalidRequest) as caught:
            self.client.sys.submit_unseal_key(reset=True)
        self.assertIn("vault is unsealed", str(caught.exception))
        other = "KEYSTEAD_STANDBY" if self.leads else "KEYSTEAD_LEADER"
        self.assertTrue(self.client.sys.join_raft_cluster(os.environ[other])["joined"])
        self.client.sys.remove_raft_node("nosuch")
        with self.assertRaises(exceptions.InvalidRequest):
            self.client.sys.remove_raft_node("")
        servers = self.client.sys.read_raft_config()["data"]["config"]["servers"]
        self.assertEqual(sorted(server["node_id"] for server in servers), ["n1", "n2", "n3"])

    def test_health_with_every_parameter(self):
        def health(method="GET", **parameters):
            seen = self.client.sys.read_health_status(method=method, **parameters)
            # hvac gives the body of a 200 and the response of everything else.
            return (200, seen) if isinstance(seen, dict) else (seen.status_code, seen.content)

        self.assertEqual(health()[0], 200 if self.leads else 429)
        status, body = health("HEAD")
        self.assertEqual((status, body), (200 if self.leads else 429, b""))
        status, body = health(standby_ok=True)
        self.assertEqual((status, body["standby"], body["sealed"]), (200, not self.leads, False))
        self.assertEqual((body["initialized"], body["performance_standby"]), (True, False))
        own, other = ("active_code", "standby_code") if self.leads else ("standby_code", "active_code")
        others = ("dr_secondary_code", "performance_standby_code", "sealed_code", "uninit_code")
        rest = {name: 599 for name in (other, *others)}
        self.assertEqual(health(**{own: 299}, **rest)[0], 299)
        self.assertEqual(health(**{own: 418})[0], 418)
        self.assertEqual(health(**rest)[0], 200 if self.leads else 429)

    def test_sys_paths_without_a_method_of_their_own(self):
        def read(path):
            answer = self.client.read(f"sys/{path}")
            return answer.get("data") or answer

        nodes = read("ha-status")["nodes"]
        self.assertEqual(len(nodes), 3)
        active = [node["api_address"] for node in nodes if node["active_node"]]
        self.assertEqual(active, [os.environ["KEYSTEAD_LEADER"]])
        self.assertGreater(read("host-info")["memory"]["total"], 0)
        self.assertEqual(read("config/state/sanitized")["storage"]["type"], "raft")
        self.assertEqual(read("replication/status")["dr"]["mode"], "disabled")
        self.assertIn("secret/", read("internal/ui/mounts")["secret"])
        self.assertEqual(read("internal/ui/mounts/secret/a")["path"], "secret/")
        paths = [request["request_path"] for request in read("in-flight-req").values()]
        self.assertIn("/v1/sys/in-flight-req", paths)
        history = self.client.list("sys/version-history")["data"]
        self.assertEqual(list(history["key_info"]), history["keys"])
        self.assertTrue(self.client.read("sys/metrics").text.startswith("#"))

        random = self.client.write("sys/tools/random/16", format="hex")["data"]["random_bytes"]
        self.assertEqual(len(bytes.fromhex(random)), 16)
        hashed = self.client.write("sys/tools/hash", input="YWJj", algorithm="sha2-256")["data"]["sum"]
        self.assertEqual(hashed, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
        self.client.write("sys/loggers", level="debug")
        self.assertEqual(set(read("loggers").values()), {"debug"})
        self.client.delete("sys/loggers")
        self.assertEqual(set(read("loggers").values()), {"info"})

    def test_wrong_calls_give_their_exceptions(self):
        with self.assertRaises(exceptions.InvalidRequest):
            self.client.write("sys/tools/random/0")
        with self.assertRaises(exceptions.UnexpectedError) as caught:
            self.client.write("sys/health", x=1)
        self.assertEqual(caught.exception.errors, [])
        with self.assertRaises(exceptions.UnexpectedError):
            self.client.read("sys/tools/random")
        with self.assertRaises(exceptions.InvalidPath):
            self.client.write("sys/nosuch", x=1)
        stranger = hvac.Client(url=self.url, token="hvs.wrong", verify=CA)
        for forbidden in (
            stranger.sys.list_mounted_secrets_engines,
            stranger.sys.list_auth_methods,
            stranger.sys.read_raft_config,
            stranger.sys.get_encryption_key_status,
            stranger.sys.seal,
            lambda: stranger.sys.enable_secrets_engine("kv", path="strange"),
            lambda: stranger.sys.disable_secrets_engine("secret"),
            lambda: stranger.sys.tune_mount_configuration("secret", description="strange"),
            lambda: stranger.sys.move_backend("secret", "strange"),
            lambda: stranger.sys.remove_raft_node("n1"),
            lambda: stranger.secrets.kv.v2.list_secrets(""),
            lambda: stranger.secrets.kv.v1.delete_secret("a"),
            lambda: stranger.read("sys/nosuch"),
        ):
            with self.assertRaises(exceptions.Forbidden):
                forbidden()
        self.assertTrue(hvac.Client(url=self.url, verify=CA).sys.is_initialized())


class ThroughTheLeader(Place, unittest.TestCase):
    variable = "KEYSTEAD_LEADER"


class ThroughAStandby(Place, unittest.TestCase):
    variable = "KEYSTEAD_STANDBY"

    def test_zz_seal_and_unseal(self):
        """Last, for it takes the standby away for a moment."""
        self.client.sys.seal()
        self.assertTrue(self.client.sys.is_sealed())
        for refused in (
            lambda: self.kv2.read_secret_version("x", raise_on_deleted_version=True),
            lambda: self.kv2.create_or_update_secret("x", secret={}),
            lambda: self.kv1.list_secrets(""),
            self.client.sys.list_mounted_secrets_engines,
            self.client.sys.list_auth_methods,
            self.client.sys.get_encryption_key_status,
            self.client.auth.token.lookup_self,
            lambda: self.client.write("sys/tools/random"),
        ):
            with self.assertRaises(exceptions.VaultDown):
                refused()
        self.assertTrue(self.client.sys.is_initialized())
        self.assertEqual(self.client.sys.read_health_status().status_code, 503)
        health = self.client.sys.read_health_status(method="GET", sealed_code=299, standby_code=599)
        self.assertEqual(health.status_code, 299)
        status = self.client.sys.submit_unseal_key(SHARES[0])
        self.assertEqual((status["sealed"], status["progress"]), (True, 1))
        self.assertEqual(self.client.sys.submit_unseal_key(reset=True)["progress"], 0)
        with self.assertRaises(exceptions.InvalidRequest):
            self.client.sys.submit_unseal_key("not a share")
        status = self.client.sys.submit_unseal_keys(SHARES[:3])
        self.assertFalse(status["sealed"])
        self.kv2.create_or_update_secret(self.path("after"), secret={"n": 1})


if __name__ == "__main__":
    unittest.main(verbosity=2)
