import Foundation
import PluginKit
import Testing

@Suite("PostgreSQL plug-in, with a real server", .serialized, .enabled(if: PostgreSQLServer.isHere))
struct PostgreSQLTests {
    @Test("a cluster is found with its volume, held in backup mode on one connection, and gives its label")
    func backup() async throws {
        let server = try PostgreSQLServer(files: try LoopFileSystem(volume: "db"))
        let state = try StateDirectory()
        let plugin = try RunningPlugin("postgresql")
        let resource = try #require(try await server.discover(plugin))
        #expect(resource.volumes == ["db"])
        #expect(resource.layer == .application)
        #expect(resource.details["mountPoints"] == server.files.mountPoint)
        #expect(resource.details["outside"] == nil)
        let findings = try await plugin.process.preflight(
            PreflightParameters(resources: [resource], stateDirectory: state.path)
        ).findings
        #expect(findings == [])

        let held = try await plugin.quiesce("h1", [resource], state: state.path)
        #expect(held.members.map(\.resource) == [server.resourceID])
        #expect(try server.holds() == 1)
        try server.sql("CREATE TABLE written_meanwhile ()")
        let member = try #require(try await plugin.unquiesce("h1").first)
        #expect(member.stillHeld)
        #expect(member.artifacts?["mode"] == "backup")
        #expect(member.artifacts?["backup_label"]?.contains("LABEL: stillpoint h1") == true)
        #expect(member.artifacts?["startLSN"]?.contains("/") == true)
        #expect(member.artifacts?["stopLSN"]?.contains("/") == true)
        #expect(member.artifacts?["tablespace_map"] == nil)
        try await eventually("the session is gone") { try server.holds() == 0 }
        await plugin.process.end()
    }

    @Test("a terminated connection is reported when it happens, and the release does not call it held")
    func lostConnection() async throws {
        let server = try PostgreSQLServer(files: try LoopFileSystem())
        let state = try StateDirectory()
        let plugin = try RunningPlugin("postgresql")
        let resource = try #require(try await server.discover(plugin))
        _ = try await plugin.quiesce("h1", [resource], state: state.path)
        try server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'stillpoint'")
        try await eventually("the loss is reported") { plugin.events.contains { $0.event == .holdLost } }
        #expect(plugin.events.first?.resource == server.resourceID)
        let member = try #require(try await plugin.unquiesce("h1").first)
        #expect(!member.stillHeld)
        #expect(member.artifacts == nil)
        await plugin.process.end()
    }

    @Test("a server that stops during the hold is a lost hold")
    func serverStops() async throws {
        let server = try PostgreSQLServer(files: try LoopFileSystem())
        let state = try StateDirectory()
        let plugin = try RunningPlugin("postgresql")
        let resource = try #require(try await server.discover(plugin))
        _ = try await plugin.quiesce("h1", [resource], state: state.path)
        try server.stop()
        try server.start()
        #expect(try await plugin.unquiesce("h1").map(\.stillHeld) == [false])
        await plugin.process.end()
    }

    @Test("the mode checkpoint holds and says where in the WAL it was")
    func checkpoint() async throws {
        let server = try PostgreSQLServer(files: try LoopFileSystem())
        let state = try StateDirectory()
        let plugin = try RunningPlugin("postgresql")
        let config = JSONValue.object(["mode": .string("checkpoint")])
        let resource = try #require(try await server.discover(plugin, config: config))
        #expect(resource.details["mode"] == "checkpoint")
        _ = try await plugin.quiesce("h1", [resource], state: state.path, config: config)
        let member = try #require(try await plugin.unquiesce("h1").first)
        #expect(member.stillHeld)
        #expect(member.artifacts?["mode"] == "checkpoint")
        #expect(member.artifacts?["backup_label"] == nil)
        #expect(member.artifacts?["startLSN"]?.contains("/") == true)
        await plugin.process.end()
    }

    @Test("the end of the lease, of the input, and of the plug-in all end the backup", arguments: 0..<3)
    func letsGo(way: Int) async throws {
        let server = try PostgreSQLServer(files: try LoopFileSystem())
        let state = try StateDirectory()
        let plugin = try RunningPlugin("postgresql")
        let resource = try #require(try await server.discover(plugin))
        _ = try await plugin.quiesce("h1", [resource], state: state.path, leaseSeconds: way == 0 ? 8 : 60)
        switch way {
        case 0: break
        case 1: plugin.process.closeInput()
        default: plugin.process.kill()
        }
        try await eventually("the backup is over") { try server.holds() == 0 }
        try server.sql("CREATE TABLE accepted_after ()")
        await plugin.process.end()
    }

    @Test("WAL outside the group's volumes is an error finding, and nothing is held")
    func walOutside() async throws {
        let files = try LoopFileSystem()
        let wal = files.directory + "/wal"
        let server = try PostgreSQLServer(files: files, walDirectory: wal)
        let state = try StateDirectory()
        let plugin = try RunningPlugin("postgresql")
        let resource = try #require(try await server.discover(plugin))
        #expect(resource.details["outside"] == "wal: \(wal)")
        let findings = try await plugin.process.preflight(
            PreflightParameters(resources: [resource], stateDirectory: state.path)
        ).findings
        #expect(findings.map(\.severity) == [.error])
        #expect(findings.first?.message.contains(wal) == true)
        let failure = await #expect(throws: PluginFailure.self) {
            try await plugin.quiesce("h1", [resource], state: state.path)
        }
        #expect(failure?.code == .refused)
        await plugin.process.end()
    }

    @Test("a tablespace on another volume brings that volume in")
    func tablespace() async throws {
        let server = try PostgreSQLServer(files: try LoopFileSystem(volume: "db"))
        let other = try LoopFileSystem(volume: "fast")
        try shell("mkdir \(other.mountPoint)/t && chown postgres \(other.mountPoint)/t; chmod 755 \(other.directory)")
        try server.sql("CREATE TABLESPACE fast LOCATION '\(other.mountPoint)/t'")
        let plugin = try RunningPlugin("postgresql")
        let found = try await plugin.process.discover(
            DiscoverParameters(
                devices: [server.files.device, other.device],
                resources: [try await server.files.resource(), try await other.resource()]))
        #expect(found.resources.first { $0.id == server.resourceID }?.volumes == ["db", "fast"])
        let state = try StateDirectory()
        let resource = try #require(found.resources.first { $0.id == server.resourceID })
        _ = try await plugin.quiesce("h1", [resource], state: state.path)
        let member = try #require(try await plugin.unquiesce("h1").first)
        #expect(member.artifacts?["tablespace_map"]?.contains(other.mountPoint) == true)
        try server.sql("DROP TABLESPACE fast")
        await plugin.process.end()
    }

    @Test("a role that may not start a backup is found out beforehand")
    func rights() async throws {
        let server = try PostgreSQLServer(files: try LoopFileSystem())
        try server.sql("CREATE ROLE weak LOGIN")
        try shell(
            "cd \(server.dataDirectory) && sed -i '1i local all weak trust' pg_hba.conf && chown postgres pg_hba.conf")
        try server.sql("SELECT pg_reload_conf()")
        let state = try StateDirectory()
        let plugin = try RunningPlugin("postgresql")
        let resource = try #require(try await server.discover(plugin))
        for mode in ["backup", "checkpoint"] {
            let config = JSONValue.object(["user": .string("weak"), "mode": .string(mode)])
            try await eventually("the new rule is in force") {
                try await plugin.process.preflight(
                    PreflightParameters(resources: [resource], config: config, stateDirectory: state.path)
                ).findings.first?.message.hasPrefix("The role may not") == true
            }
        }
        await plugin.process.end()
    }

    @Test("a copy cut inside the hold starts as it is; with a backup label and no archive it does not")
    func copyStarts() async throws {
        let files = try LoopFileSystem(volume: "db")
        let server = try PostgreSQLServer(files: files)
        try server.sql("CREATE TABLE numbers AS SELECT generate_series(1, 5000) AS n")
        let state = try StateDirectory()
        let database = try RunningPlugin("postgresql")
        let system = try RunningPlugin("filesystem")
        let resource = try #require(try await server.discover(database))
        _ = try await database.quiesce("h1", [resource], state: state.path)
        _ = try await system.quiesce("h2", [try await files.resource()], state: state.path)
        try shell("cp --sparse=always \(files.directory)/backing \(files.directory)/copy")
        #expect(try await system.unquiesce("h2").map(\.stillHeld) == [true])
        let member = try #require(try await database.unquiesce("h1").first)
        #expect(member.stillHeld)
        try server.sql("DROP TABLE numbers")
        try server.stop()

        let mount = files.directory + "/copied"
        try shell("mkdir \(mount); mount -o loop \(files.directory)/copy \(mount)")
        defer { _ = try? shell("umount \(mount)", mayFail: true) }
        let data = mount + "/data"
        try shell("rm \(data)/postmaster.pid")
        try server.start(in: data)
        #expect(try server.sql("SELECT count(*) || ' ' || sum(n) FROM numbers") == "5000 12502500")
        try server.stop(in: data)

        // The label asks for the end of the backup, which PostgreSQL wrote after the cut.
        try shell("umount \(mount); e2fsck -fy \(files.directory)/copy >/dev/null", mayFail: true)
        try shell("mount -o loop \(files.directory)/copy \(mount); rm -f \(data)/postmaster.pid")
        let label = try #require(member.artifacts?["backup_label"])
        try label.write(toFile: data + "/backup_label", atomically: false, encoding: .utf8)
        try shell("chown postgres \(data)/backup_label")
        try shell("rm -f \(data)/log")
        #expect(throws: (any Error).self) { try server.start(in: data) }
        #expect(try shell("cat \(data)/log").contains("WAL ends before end of online backup"))
        try server.start()
        await system.process.end()
        await database.process.end()
    }

    @Test("a restore stops the cluster, and starts it again as it was started")
    func restores() async throws {
        let server = try PostgreSQLServer(files: try LoopFileSystem())
        let state = try StateDirectory()
        let plugin = try RunningPlugin("postgresql")
        let resource = try #require(try await server.discover(plugin))
        let parameters = RestoreParameters(
            restoreID: "r1", resources: [resource], devices: [server.files.device], stateDirectory: state.path)
        let prepared = try await plugin.process.prepareRestore(parameters)
        #expect(prepared.steps == ["Stopped PostgreSQL in \(server.dataDirectory)"])
        #expect(throws: (any Error).self) { try server.sql("SELECT 1") }
        // What a cut of the running server brings back.
        try shell(
            "echo 1 > \(server.dataDirectory)/postmaster.pid; chown postgres \(server.dataDirectory)/postmaster.pid")
        let finished = try await plugin.process.finishRestore(parameters)
        #expect(finished.steps.last?.hasPrefix("Started PostgreSQL in \(server.dataDirectory)") == true)
        #expect(try server.sql("SHOW port") == "\(server.port)")
        #expect(state.files == [])
        await plugin.process.end()
    }

    @Test(
        "stopped, unmounted, reverted, mounted, started: at the snapshot, or with the label and an archive at the end",
        arguments: [false, true])
    func reverts(toArchiveEnd: Bool) async throws {
        let files = try LoopFileSystem(volume: "db")
        let server = try PostgreSQLServer(files: files)
        let archive = files.directory + "/archive"
        try shell("mkdir \(archive); chown postgres \(archive)")
        try server.sql(
            """
            ALTER SYSTEM SET archive_mode = on;
            ALTER SYSTEM SET archive_command = 'test ! -f \(archive)/%f && cp %p \(archive)/%f';
            ALTER SYSTEM SET restore_command = 'cp \(archive)/%f %p';
            """)
        try server.stop()
        try server.start()
        try server.sql("CREATE TABLE numbers AS SELECT 1 AS n")
        let state = try StateDirectory()
        let (database, system) = (try RunningPlugin("postgresql"), try RunningPlugin("filesystem"))
        let cluster = try #require(try await server.discover(database))
        let mount = try await files.resource()
        _ = try await database.quiesce("h1", [cluster], state: state.path)
        _ = try await system.quiesce("h2", [mount], state: state.path)
        try shell("cp --sparse=always \(files.directory)/backing \(files.directory)/copy")
        #expect(try await system.unquiesce("h2").map(\.stillHeld) == [true])
        let member = try #require(try await database.unquiesce("h1").first)
        #expect(member.stillHeld)
        try server.sql("INSERT INTO numbers VALUES (2)")
        let segment = try server.sql("SELECT pg_walfile_name(pg_switch_wal())")
        try await eventually("the WAL is archived") { access("\(archive)/\(segment)", F_OK) == 0 }

        var parameters = RestoreParameters(
            restoreID: "r1", resources: [cluster], devices: [files.device], stateDirectory: state.path)
        if toArchiveEnd {
            let own = ["dataDirectory": JSONValue.string(server.dataDirectory), "restoreWithBackupLabel": .bool(true)]
            parameters.config = .object(["clusters": .array([.object(own)])])
        }
        _ = try await database.process.prepareRestore(parameters)
        var mounts = parameters
        mounts.resources = [mount]
        _ = try await system.process.prepareRestore(mounts)
        // In place, under the attached device: what the kernel has cached of it is stale now.
        try shell("dd if=\(files.directory)/copy of=\(files.directory)/backing bs=1M conv=notrunc status=none")
        _ = try await system.process.finishRestore(mounts)
        parameters.artifacts = [server.resourceID: member.artifacts ?? [:]]
        _ = try await database.process.finishRestore(parameters)
        try await eventually("the recovery is over") { try server.sql("SELECT pg_is_in_recovery()") == "f" }
        #expect(try server.sql("SELECT string_agg(n::text, ',') FROM numbers") == (toArchiveEnd ? "1,2" : "1"))
        #expect(state.files == [])
        await system.process.end()
        await database.process.end()
    }

    @Test("a cluster whose configuration lies elsewhere is stopped and started with it")
    func configurationElsewhere() async throws {
        let server = try PostgreSQLServer(files: try LoopFileSystem())
        let elsewhere = server.files.directory + "/etc"
        try server.stop()
        try shell(
            """
            mkdir \(elsewhere); cd \(server.dataDirectory); mv *.conf \(elsewhere); chown -R postgres \(elsewhere)
            cat >> \(elsewhere)/postgresql.conf <<'END'
            data_directory = '\(server.dataDirectory)'
            hba_file = '\(elsewhere)/pg_hba.conf'
            ident_file = '\(elsewhere)/pg_ident.conf'
            unix_socket_directories = '\(server.sockets)'
            listen_addresses = ''
            port = \(server.port)
            END
            cd /; \(PostgreSQLServer.asPostgres) \(PostgreSQLServer.programs!)/pg_ctl start -w -s \
                -D \(server.dataDirectory) -o '-c config_file="\(elsewhere)/postgresql.conf"' -l \(elsewhere)/log
            """)
        let state = try StateDirectory()
        let plugin = try RunningPlugin("postgresql")
        let resource = try #require(try await server.discover(plugin))
        let parameters = RestoreParameters(
            restoreID: "r1", resources: [resource], devices: [server.files.device], stateDirectory: state.path)
        _ = try await plugin.process.prepareRestore(parameters)
        _ = try await plugin.process.finishRestore(parameters)
        #expect(try server.sql("SHOW config_file") == "\(elsewhere)/postgresql.conf")
        await plugin.process.end()
    }
}
