import API
import Foundation
import Testing

@testable import Node

/// These bytes lie in pools: what is written here once must be read for ever.
@Suite("Snapshot attributes")
struct SnapshotAttributesTests {
    private static let evidence = EvidenceInfo(
        requested: .application, policy: .allowLower, achieved: .fileSystem, reasons: ["volume a: no"],
        cut: CutInfo(epoch: 7, startedAt: Date(timeIntervalSince1970: 1_700_000_000.25), durationSeconds: 0.5),
        members: [
            MemberEvidence(
                agent: "web1", plugin: "postgresql", layer: .application, resource: "cluster:/srv/db", label: "main",
                volumes: ["a"], heldBeforeCut: true, releasedAfterCut: true, stillHeldAtRelease: false,
                quietSeconds: 1.5, quiesceSeconds: 0.25, failure: "lost", artifacts: ["backup_label": "START\n"])
        ])

    private static let complete = SnapshotAttributes(
        sagaID: "s1", state: .complete, requested: .application, achieved: .fileSystem, quietSeconds: 1.5,
        evidence: evidence)

    private static let golden = #"""
        {"achieved":"fileSystem","evidence":{"achieved":"fileSystem","cut":{"durationSeconds":0.5,"epoch":7,\#
        "startedAt":"2023-11-14T22:13:20.250Z"},"members":[{"agent":"web1","artifacts":{"backup_label":"START\n"},\#
        "failure":"lost","heldBeforeCut":true,"label":"main","layer":"application","plugin":"postgresql",\#
        "quiesceSeconds":0.25,"quietSeconds":1.5,"releasedAfterCut":true,"resource":"cluster:/srv/db",\#
        "stillHeldAtRelease":false,"volumes":["a"]}],"policy":"allowLower","reasons":["volume a: no"],\#
        "requested":"application","version":1},"quietSeconds":1.5,"requested":"application","sagaID":"s1",\#
        "state":"complete","version":1}
        """#

    private static let goldenPending = #"""
        {"achieved":"crash","quietSeconds":0,"requested":"crash","sagaID":"s1","state":"pending","version":1}
        """#

    @Test("the bytes of version 1 do not change")
    func golden() throws {
        #expect(String(decoding: try Self.complete.bytes(), as: UTF8.self) == Self.golden)
        #expect(SnapshotAttributes(bytes: Array(Self.golden.utf8)) == Self.complete)
        let pending = SnapshotAttributes(
            sagaID: "s1", state: .pending, requested: .crash, achieved: .crash, quietSeconds: 0, evidence: nil)
        #expect(String(decoding: try pending.bytes(), as: UTF8.self) == Self.goldenPending)
        #expect(SnapshotAttributes(bytes: Array(Self.goldenPending.utf8)) == pending)
    }

    @Test("members that a later release adds do no harm, another version and garbage are not taken for attributes")
    func others() {
        let more = Self.goldenPending.replacingOccurrences(of: "{\"achieved\"", with: "{\"later\":[1],\"achieved\"")
        #expect(SnapshotAttributes(bytes: Array(more.utf8))?.state == .pending)
        let next = Self.goldenPending.replacingOccurrences(of: "\"version\":1", with: "\"version\":2")
        #expect(SnapshotAttributes(bytes: Array(next.utf8)) == nil)
        #expect(SnapshotAttributes(bytes: []) == nil)
        #expect(SnapshotAttributes(bytes: Array(Self.golden.utf8.dropLast())) == nil)
    }
}
