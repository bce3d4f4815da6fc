import API
import Foundation
import Testing

@testable import Node

/// Holds the documented schemas against what the types really encode.
@Suite("Schemas")
struct SchemaTests {
    struct Sample: Sendable, CustomTestStringConvertible {
        var schema: String
        /// With every optional field set.
        var full: Data
        /// With none set.
        var least: Data
        var testDescription: String { schema }

        init(_ schema: String, _ full: some Encodable, _ least: some Encodable) {
            self.schema = schema
            self.full = (try? APIJSON.encoder().encode(full)) ?? Data()
            self.least = (try? APIJSON.encoder().encode(least)) ?? Data()
        }

        init(_ schema: String, _ only: some Encodable) { self.init(schema, only, only) }
    }

    static let now = Date(timeIntervalSince1970: 1_800_000_000)
    static let failure = APIFailure(status: 400, code: "c", message: "m", hint: "h")
    static let export = ExportInfo(iqn: "i", lun: 0, portals: ["p"])
    static let member = MemberEvidence(
        agent: "a", plugin: "p", layer: .application, resource: "r", label: "l", volumes: ["v"], heldBeforeCut: true,
        releasedAfterCut: true, stillHeldAtRelease: true, quietSeconds: 1, quiesceSeconds: 1, failure: "f",
        artifacts: ["a": "b"], level: .crash)
    private static let preview = SnapshotPreview(
        name: "n", volumes: ["v"], requestedConsistency: .application, policy: .require,
        attainableConsistency: .crash, refusal: "r", reasons: ["r"],
        members: [
            PreviewMember(
                agent: "a", plugin: "p", layer: .application, resource: "r", label: "l", volumes: ["v"],
                blockedBy: "b", quiesceSeconds: 1)
        ],
        remarks: ["m"], estimatedQuietSeconds: 1, isEstimateFromHistory: false)
    static let evidence = EvidenceInfo(
        requested: .crash, policy: .require, achieved: .crash, reasons: ["r"],
        cut: CutInfo(epoch: 1, startedAt: now, durationSeconds: 1), members: [member])
    static let snapshot = SnapshotInfo(
        id: "i", name: "n", kind: .user, volumes: ["v"], createdAt: now, requestedConsistency: .crash,
        achievedConsistency: .crash, quietSeconds: 0, sizeBytes: 1, clones: ["c"], evidence: evidence,
        space: SpaceInfo(exclusiveBytes: 2, freedBytes: 1))
    static let revert = RevertResult(volumes: ["v"], revertedTo: "s", keptSnapshot: "k", steps: ["s"])
    static let plugin = PluginInfo(name: "n", version: "1", layer: .application)
    static let resource = ResourceInfo(
        plugin: "p", layer: .application, id: "i", label: "l", volumes: ["v"], details: ["a": "b"], level: .crash)
    static let pool = PoolStatus(
        state: .full, sizeBytes: 1, usedBytes: 1, freeBytes: 0, failure: "f",
        alerts: [PoolAlert(kind: "k", message: "m", hint: "h")])

    static let samples: [Sample] = [
        Sample("Failure", failure, APIFailure(status: 400, code: "c", message: "m")),
        Sample("VolumeInfo", used(volume("s")), volume(nil)), Sample("VolumeUse", use, without(use)),
        Sample("ExportInfo", export),
        Sample(
            "VolumeCreateRequest", VolumeCreateRequest(name: "n", sizeBytes: 1, export: true),
            VolumeCreateRequest(name: "n", sizeBytes: 1)),
        Sample("PortalGroupInfo", PortalGroupInfo(group: 1, access: .standby, portals: ["p"])),
        Sample("PortalGroupRequest", PortalGroupRequest(access: .nonOptimized)),
        Sample("VolumeResizeRequest", VolumeResizeRequest(sizeBytes: 1)),
        Sample(
            "RevertRequest", RevertRequest(volumes: ["v"], snapshot: "s", undo: true, drive: true, dryRun: true),
            RevertRequest(volumes: ["v"], snapshot: nil)),
        Sample("RevertResult", revert, RevertResult(volumes: ["v"], revertedTo: "s", keptSnapshot: nil, steps: [])),
        Sample(
            "CloneRequest", CloneRequest(snapshot: "s", volume: "v", name: "n", export: true),
            CloneRequest(snapshot: "s", name: "n")),
        Sample(
            "TargetInfo",
            TargetInfo(iqn: "i", portals: ["p"], luns: [], access: [], sessions: [])),
        Sample("LUNInfo", LUNInfo(lun: 0, volume: "v", naa: "n", isReadOnly: false)),
        Sample(
            "AccessInfo", AccessInfo(initiator: "i", chapUser: "u", isMutual: true),
            AccessInfo(initiator: "i", chapUser: nil, isMutual: false)),
        Sample("SessionInfo", SessionInfo(id: 1, target: "t", initiator: "i", address: "a", tsih: 1)),
        Sample("LatencyInfo", LatencyInfo()), Sample("DiscoveryInfo", DiscoveryInfo(access: [])),
        Sample(
            "TargetAllowRequest",
            TargetAllowRequest(
                initiator: "i", chapUser: "u", chapSecret: "s", mutualUser: "m", mutualSecret: "t"),
            TargetAllowRequest(initiator: "i")),
        Sample("TargetDenyRequest", TargetDenyRequest(initiator: "i")),
        Sample("SnapshotInfo", snapshot, without(snapshot)),
        Sample(
            "SnapshotCreateRequest",
            SnapshotCreateRequest(
                volumes: ["v"], name: "n", consistency: .crash, policy: .require, leaseSeconds: 10),
            SnapshotCreateRequest(volumes: ["v"])),
        Sample(
            "SnapshotPreview", preview,
            SnapshotPreview(
                name: "n", volumes: [], requestedConsistency: .crash, policy: .require, attainableConsistency: .crash,
                refusal: nil, reasons: [], members: [], remarks: [], estimatedQuietSeconds: 0,
                isEstimateFromHistory: true)),
        Sample(
            "PreviewMember", preview.members[0],
            PreviewMember(
                agent: "a", plugin: "p", layer: .machine, resource: "r", label: "l", volumes: [], blockedBy: nil,
                quiesceSeconds: nil)),
        Sample(
            "SnapshotExportRequest",
            SnapshotExportRequest(volume: "v", initiator: "i", chapUser: "u", chapSecret: "s"),
            SnapshotExportRequest(initiator: "i")),
        Sample("EvidenceInfo", evidence), Sample("CutInfo", evidence.cut),
        Sample("MemberEvidence", member, without(member)),
        Sample("AgentInfo", agent(full: true), agent(full: false)), Sample("PluginInfo", plugin),
        Sample("ResourceInfo", resource, without(resource)),
        Sample("AgentTokenRequest", AgentTokenRequest(name: "n", validSeconds: 60), AgentTokenRequest(name: "n")),
        Sample("AgentToken", AgentToken(token: "t", name: "n", expiresAt: now)),
        Sample(
            "EnrollRequest", EnrollRequest(token: "t", address: "a", certificateRequest: "c", version: "1")),
        Sample("EnrollResponse", EnrollResponse(name: "n", nodeID: "i", certificate: "c", authority: "a")),
        Sample(
            "JobInfo",
            JobInfo(
                id: "i", kind: "k", subject: "s", state: .failed, createdAt: now, endedAt: now, steps: [],
                result: JobResult(), failure: failure),
            JobInfo(id: "i", kind: "k", subject: "s", state: .running, createdAt: now)),
        Sample(
            "JobStep", JobStep(name: "n", state: .running, startedAt: now, seconds: 1, detail: "d"),
            JobStep(name: "n", state: .running, startedAt: now)),
        Sample(
            "JobResult",
            JobResult(snapshot: snapshot, revert: revert, scrub: scrub(now), guests: [guestRestore(full: true)]),
            JobResult()),
        Sample("PoolInfo", poolInfo(scrub(now)), poolInfo(nil)),
        Sample(
            "SuperblockCopyInfo", SuperblockCopyInfo(offset: 0, generation: 1, isGood: true),
            SuperblockCopyInfo(offset: 0, generation: nil, isGood: false)),
        Sample("PoolMemoryInfo", memory), Sample("PoolAlert", PoolAlert(kind: "k", message: "m", hint: "h")),
        Sample("ReclaimInfo", ReclaimInfo()),
        Sample("ScrubInfo", scrub(now), scrub(nil)),
        Sample("ScrubRequest", ScrubRequest(bytesPerSecond: 1 << 20, restart: true), ScrubRequest()),
        Sample("PoolGrowRequest", PoolGrowRequest(sizeBytes: 1), PoolGrowRequest()),
        Sample("GuestInfo", guest(mode: "agent"), guest(mode: nil)), Sample("GuestSnapshot", guestSnapshot),
        Sample(
            "GuestRestoreRequest",
            GuestRestoreRequest(
                guests: ["g"], from: "s", beside: "b", disks: ["vda"], start: true, memory: true, undo: true,
                dryRun: true),
            GuestRestoreRequest(guests: ["g"])),
        Sample("GuestRestoreResult", guestRestore(full: true), guestRestore(full: false)),
        Sample("NodeStatus", status()), Sample("PoolStatus", pool, healthyPool()),
        Sample("HealthInfo", HealthInfo(status: "ok", checks: ["a": "b"])),
        Sample("SpaceInfo", SpaceInfo(exclusiveBytes: 2, freedBytes: 1)),
        Sample("SpaceRequest", SpaceRequest(snapshots: ["s"], volumes: ["v"]), SpaceRequest(snapshots: ["s"])),
        Sample("VolumeSpaceInfo", VolumeSpaceInfo(headBytes: 1, snapshotBytes: 1, totalBytes: 2)),
        Sample(
            "DiffLine", DiffLine(kind: .data, offset: 0, lengthBytes: 1, fromBytes: 1, toBytes: 1), DiffLine(kind: .end)
        ),
        Sample("ReceiveInfo", receive("f"), receive(nil)),
        Sample("PromoteResult", PromoteResult(volume: volume(nil), snapshots: ["s"], formerOwner: "f")),
    ]

    static let memory = PoolMemoryInfo(
        limitBytes: 1, overlayBytes: 1, cacheBytes: 1, cacheLimitBytes: 1, bitmapBytes: 1)

    static func scrub(_ end: Date?) -> ScrubInfo {
        ScrubInfo(state: end == nil ? .running : .finished, startedAt: now, endedAt: end, damage: ["d"])
    }

    static func poolInfo(_ scrub: ScrubInfo?) -> PoolInfo {
        PoolInfo(
            path: "p", backend: "pread", state: scrub == nil ? .healthy : .full, failure: scrub == nil ? nil : "f",
            sizeBytes: 1, usedBytes: 1, freeBytes: 1, usedPercent: 50, softThresholdPercent: 80, journalSizeBytes: 1,
            journalUsedBytes: 1, generation: 1, epoch: 1, superblockCopies: [], memory: memory,
            reclaim: ReclaimInfo(), scrub: scrub, alerts: [])
    }

    static let guestSnapshot = GuestSnapshot(name: "n", createdAt: now, consistency: .crash, hasMemory: false)

    static func guest(mode: String?) -> GuestInfo {
        GuestInfo(
            name: "n", uuid: "u", agent: "a", state: "off", volumes: ["v"], disks: ["vda": "d"], mode: mode,
            snapshots: [guestSnapshot])
    }

    static func guestRestore(full: Bool) -> GuestRestoreResult {
        GuestRestoreResult(
            restoreID: "i", guest: "g", uuid: "u", agent: "a", snapshot: "s", steps: ["s"], reverted: ["v"],
            keptSnapshot: full ? "k" : nil, clones: ["c"], state: ["k": "v"], undoOf: full ? "o" : nil)
    }

    static func volume(_ origin: String?) -> VolumeInfo {
        VolumeInfo(
            id: "i", name: "n", sizeBytes: 1, mappedBytes: 1, naa: "n", createdAt: now, exports: [export],
            cloneOf: origin, initiators: [], snapshotCount: 0,
            space: origin == nil ? nil : VolumeSpaceInfo(headBytes: 1, snapshotBytes: 1, totalBytes: 2))
    }

    static let use = VolumeUse(
        agent: "a", plugin: "p", layer: .machine, resource: "r", label: "l", state: "running")

    static func used(_ volume: VolumeInfo) -> VolumeInfo {
        var volume = volume
        volume.uses = [use]
        return volume
    }

    static func without(_ use: VolumeUse) -> VolumeUse {
        var use = use
        use.state = nil
        return use
    }

    static func without(_ resource: ResourceInfo) -> ResourceInfo {
        var resource = resource
        resource.level = nil
        return resource
    }

    static func receive(_ from: String?) -> ReceiveInfo {
        ReceiveInfo(
            snapshot: "i", name: "n", from: from, volumes: ["v"], offsetBytes: 1, sizeBytes: 2, resumeToken: "t",
            isActive: false)
    }

    static func without(_ snapshot: SnapshotInfo) -> SnapshotInfo {
        var snapshot = snapshot
        snapshot.evidence = nil
        snapshot.space = nil
        return snapshot
    }

    static func without(_ member: MemberEvidence) -> MemberEvidence {
        var member = member
        member.failure = nil
        member.level = nil
        return member
    }

    static func agent(full: Bool) -> AgentInfo {
        AgentInfo(
            name: "n", address: "a", enrolledAt: now, lastSeenAt: full ? now : nil, isReachable: true,
            version: full ? "1" : nil, plugins: [plugin], certificateFingerprint: "f",
            resources: full ? [resource] : nil, failure: full ? "f" : nil,
            certificateExpiresAt: full ? now : nil)
    }

    static func status() -> NodeStatus {
        NodeStatus(
            nodeID: "i", version: "1", uptimeSeconds: 1, apiAddress: "a", iscsiAddress: "i", dataDirectory: "d",
            pool: pool, volumeCount: 1, snapshotCount: 1, agentCount: 1, reachableAgentCount: 1, runningJobs: 1)
    }

    static func healthyPool() -> PoolStatus {
        var healthy = pool
        healthy.failure = nil
        return healthy
    }

    @Test("every documented object has a sample here")
    func samplesAreComplete() {
        #expect(Set(Self.samples.map(\.schema)) == Set(ObjectSchemas.all.map(\.name)))
    }

    @Test("an object has the documented fields, required ones always", arguments: samples)
    func fieldsMatch(_ sample: Sample) throws {
        let schema = try #require(ObjectSchemas.byName[sample.schema])
        let full = try #require(try JSONSerialization.jsonObject(with: sample.full) as? [String: Any])
        let least = try #require(try JSONSerialization.jsonObject(with: sample.least) as? [String: Any])
        #expect(Set(full.keys) == Set(schema.fields.map(\.name)))
        #expect(Set(least.keys) == Set(schema.fields.filter(\.isRequired).map(\.name)))
        for field in schema.fields { #expect(Self.fits(full[field.name], field.schema), "\(field.name)") }
    }

    /// The value's shape is the schema's; named objects are looked at by their own sample.
    private static func fits(_ value: Any?, _ schema: Schema) -> Bool {
        switch schema {
        case .string, .date: value is String
        case .choice(let words): (value as? String).map(words.contains) ?? false
        case .integer, .number: value is NSNumber
        case .boolean: value is Bool
        case .array(let element): (value as? [Any])?.allSatisfy { fits($0, element) } ?? false
        case .map(let element): (value as? [String: Any])?.values.allSatisfy { fits($0, element) } ?? false
        case .named: value is [String: Any]
        }
    }
}
