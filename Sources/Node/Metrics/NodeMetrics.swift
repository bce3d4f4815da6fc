import API
import BlockStore
import Foundation
import ISCSI
import SCSI

extension NodeServices {
    /// Everything that `/metrics` shows, at one moment.
    func metricsText() async throws -> String {
        var metrics = MetricsText()
        metrics.add(
            "stillpoint_info", .gauge, "The node; always 1.",
            [.init(1, [("version", Release.version), ("node", identity.nodeID)])])
        metrics.add("stillpoint_uptime_seconds", .gauge, "Seconds since the node started.", [.init(uptimeSeconds)])
        let pool = inventory.pool
        let statistics = try await inventory.blocking.run { pool.statistics }
        let contents = try await inventory.contents()
        addPool(statistics, to: &metrics)
        addPoolHealth(statistics, to: &metrics)
        addVolumes(contents, to: &metrics)
        addTargets(to: &metrics)
        addDevices(contents, to: &metrics)
        addSessions(to: &metrics)
        try await addAgentsAndJobs(to: &metrics)
        return metrics.text
    }

    private func addPool(_ pool: PoolStatistics, to metrics: inout MetricsText) {
        let gauges: [(String, String, UInt64)] = [
            ("size_bytes", "The most that the pool can occupy.", pool.sizeBytes),
            ("used_bytes", "Bytes in use or waiting to be freed.", pool.usedBytes),
            ("free_bytes", "Bytes that can still be written.", pool.freeBytes),
            ("epoch", "The birth epoch of new blocks.", pool.epoch),
            ("overlay_entries", "Mappings only in memory and journal.", pool.overlayEntries),
            ("journal_used_bytes", "Bytes of the journal in use.", pool.journalUsedBytes),
            ("reclaims_pending", "Deleted snapshots and volumes not yet reclaimed.", pool.reclaimsPending),
            ("reclaims_waiting", "Those of them that several states stand on.", pool.reclaim.waiting),
        ]
        for (name, help, value) in gauges {
            metrics.add("stillpoint_pool_\(name)", .gauge, help, [.init(Double(value))])
        }
        let state: String =
            switch pool.state {
            case .healthy: "healthy"
            case .full: "full"
            case .readOnly: "readOnly"
            }
        metrics.add(
            "stillpoint_pool_state", .gauge, "1 for the state that the pool is in.",
            ["healthy", "full", "readOnly"].map { .init($0 == state ? 1 : 0, [("state", $0)]) })
        let counters: [(String, String, UInt64)] = [
            ("checkpoints_total", "Checkpoints.", pool.checkpoints), ("commits_total", "Commits.", pool.commits),
            ("data_written_bytes_total", "Data written.", pool.dataBytesWritten),
            ("metadata_written_bytes_total", "Map pages written.", pool.metadataBytesWritten),
            ("journal_written_bytes_total", "Journal written.", pool.journalBytesWritten),
            ("reclaimed_bytes_total", "Freed of deleted snapshots and volumes.", pool.reclaim.freedBytes),
            ("checksum_errors_total", "Blocks that came back from the disk wrong.", pool.checksumErrors),
        ]
        for (name, help, value) in counters {
            metrics.add("stillpoint_pool_\(name)", .counter, help, [.init(Double(value))])
        }
    }

    private func addPoolHealth(_ statistics: PoolStatistics, to metrics: inout MetricsText) {
        let scrub = scrubbing.info
        metrics.add(
            "stillpoint_pool_backend_info", .gauge, "How calls reach the disk; always 1.",
            [.init(1, [("io", inventory.pool.backend)])])
        metrics.add(
            "stillpoint_pool_soft_threshold_ratio", .gauge, "Part of the space at which initiators are told.",
            [.init(Double(watch.softThresholdPercent) / 100)])
        metrics.add(
            "stillpoint_pool_soft_threshold_crossings_total", .counter,
            "How often initiators were told that space runs out.", [.init(Double(watch.crossings))])
        let alerts = Dictionary(grouping: watch.alerts(statistics, scrub: scrub), by: \.kind)
        metrics.add(
            "stillpoint_pool_alert", .gauge, "1 for each kind of alert that stands.",
            ["failed", "readOnly", "full", "softThreshold", "damage", "superblockRepaired"].map {
                .init(alerts[$0] == nil ? 0 : 1, [("kind", $0)])
            })
        let damage = inventory.pool.damage().records.count { !$0.isRepaired }
        metrics.add(
            "stillpoint_pool_damaged_blocks", .gauge, "Wrong blocks and pages that are known.", [.init(Double(damage))])
        metrics.add(
            "stillpoint_pool_scrub_running", .gauge, "1 while a scrub runs.", [.init(scrubbing.isRunning ? 1 : 0)])
        metrics.add(
            "stillpoint_pool_scrub_read_bytes", .gauge, "Bytes that this or the last scrub has read.",
            [.init(Double(scrub?.bytesRead ?? 0))])
        metrics.add(
            "stillpoint_pool_last_scrub_timestamp_seconds", .gauge, "When the last scrub ended, Unix time; 0 for none.",
            [.init(scrub?.endedAt?.timeIntervalSince1970 ?? 0)])
    }

    private func addVolumes(_ contents: Inventory.Contents, to metrics: inout MetricsText) {
        metrics.add(
            "stillpoint_volume_size_bytes", .gauge, "Size of a volume.",
            contents.volumes.map { .init(Double($0.sizeBytes), [("volume", $0.name)]) })
        metrics.add(
            "stillpoint_volume_mapped_bytes", .gauge, "Bytes that a volume maps.",
            contents.volumes.map { .init(Double($0.mappedBytes), [("volume", $0.name)]) })
        metrics.add("stillpoint_snapshots", .gauge, "Snapshots.", [.init(Double(contents.snapshots.count))])
        // The newest snapshot of each volume says how it went last.
        var newest: [VolumeID: SnapshotRecord] = [:]
        for snapshot in contents.snapshots where snapshot.kind == .user {
            for member in snapshot.members where newest[member.volume]?.createdAt ?? 0 <= snapshot.createdAt {
                newest[member.volume] = snapshot
            }
        }
        let last = contents.volumes.compactMap { volume in newest[volume.id].map { (volume.name, $0) } }
        metrics.add(
            "stillpoint_volume_last_snapshot_quiet_seconds", .gauge,
            "The longest time that a member was quiet in the newest snapshot of a volume.",
            last.map { name, snapshot in
                .init(contents.attributes[snapshot.id]?.quietSeconds ?? 0, [("volume", name)])
            })
        metrics.add(
            "stillpoint_volume_last_snapshot_timestamp_seconds", .gauge, "When the newest snapshot was cut, Unix time.",
            last.map { name, snapshot in .init(Double(snapshot.createdAt / 1_000_000) / 1000, [("volume", name)]) })
    }

    private func addTargets(to metrics: inout MetricsText) {
        let targets = inventory.registry.metrics()
        func samples(_ value: (TargetMetrics) -> UInt64) -> [MetricsText.Sample] {
            targets.map { .init(Double(value($0)), [("target", $0.iqn)]) }
        }
        metrics.add(
            "stillpoint_target_sessions", .gauge, "Sessions of a target.", samples { UInt64(max(0, $0.sessions)) })
        Self.add("target", targets.map { ([("target", $0.iqn)], $0.statistics) }, to: &metrics)
        metrics.add("stillpoint_target_logins_total", .counter, "Logins accepted.", samples(\.loginsAccepted))
        metrics.add(
            "stillpoint_target_refused_logins_total", .counter, "Logins refused.", samples(\.loginsRefused))
    }

    /// What was done to a volume through all its targets.
    private func addDevices(_ contents: Inventory.Contents, to metrics: inout MetricsText) {
        let names = Dictionary(
            contents.volumes.map { ($0.naa.description, $0.name) }, uniquingKeysWith: { first, _ in first })
        let volumes = inventory.registry.deviceStatistics().compactMap { device in
            names[device.naa].map { ([("volume", $0)], device.statistics) }
        }
        Self.add("volume", volumes, to: &metrics)
    }

    /// Reads, writes and the rest in one histogram: sessions come and go, and there may be many.
    private func addSessions(to metrics: inout MetricsText) {
        let sessions = inventory.registry.sessions().filter { !$0.isDiscovery }.map { session in
            (
                [("target", session.iqn), ("initiator", session.initiator), ("session", String(session.id))],
                session.statistics
            )
        }
        Self.addCounters("session", sessions, to: &metrics)
        metrics.add(
            "stillpoint_session_command_seconds", "Seconds from a command to its answer.",
            sessions.map { labels, statistics in
                var sum = statistics.reads
                sum += statistics.writes
                sum += statistics.others
                return (labels, sum)
            })
    }

    private typealias Counted = (labels: [(String, String)], statistics: CommandStatistics)

    private static func add(_ subject: String, _ counted: [Counted], to metrics: inout MetricsText) {
        addCounters(subject, counted, to: &metrics)
        metrics.add(
            "stillpoint_\(subject)_command_seconds", "Seconds from a command to its answer.",
            counted.flatMap { labels, statistics in
                [("read", statistics.reads), ("write", statistics.writes), ("other", statistics.others)].map {
                    (labels + [("operation", $0.0)], $0.1)
                }
            })
    }

    private static func addCounters(_ subject: String, _ counted: [Counted], to metrics: inout MetricsText) {
        let counters: [(String, String, (CommandStatistics) -> UInt64)] = [
            ("commands_total", "Commands ended.", { $0.commands }),
            ("failed_commands_total", "Commands not ended with GOOD.", { $0.failedCommands }),
            ("read_bytes_total", "Bytes read.", { $0.bytesRead }),
            ("written_bytes_total", "Bytes written.", { $0.bytesWritten }),
        ]
        for (name, help, value) in counters {
            metrics.add(
                "stillpoint_\(subject)_\(name)", .counter, help,
                counted.map { .init(Double(value($0.statistics)), $0.labels) })
        }
    }

    private func addAgentsAndJobs(to metrics: inout MetricsText) async throws {
        let names = try await agents.names()
        metrics.add(
            "stillpoint_agent_reachable", .gauge, "1 where the agent answered at the last look.",
            names.map { .init(agents.reachability($0).isReachable ? 1 : 0, [("agent", $0)]) })
        let counts = jobs.counts
        metrics.add("stillpoint_jobs_running", .gauge, "Jobs that run.", [.init(Double(counts.running))])
        metrics.add(
            "stillpoint_jobs_total", .counter, "Jobs ended since the node started.",
            [
                .init(Double(counts.succeeded), [("outcome", "succeeded")]),
                .init(Double(counts.failed), [("outcome", "failed")]),
            ])
    }
}
