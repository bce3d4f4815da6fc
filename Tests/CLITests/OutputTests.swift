import API
import Foundation
import Testing

@testable import stillpoint

@Suite("What people read")
struct OutputTests {
    @Test("a table has aligned columns and no blanks at its ends")
    func table() {
        let table = Table(
            [.left("NAME"), .right("SIZE"), .left("NOTE")],
            rows: [["db", "10 GiB", ""], ["a-long-name", "4 KiB", "x"]])
        #expect(
            table.rendered() == """
                NAME           SIZE  NOTE
                db           10 GiB  -
                a-long-name   4 KiB  x
                """)
        #expect(table.rendered(indent: 2).hasPrefix("  NAME"))
    }

    @Test(
        "sizes for people",
        arguments: [
            (0, "0 B"), (4096, "4 KiB"), (1023, "1023 B"), (10 << 30, "10 GiB"), (1536 << 20, "1.50 GiB"),
            ((64 << 20) + 300_000, "64.3 MiB"), (64 << 40, "64 TiB"), (268_435_457, "256 MiB"),
        ] as [(UInt64, String)])
    func bytes(count: UInt64, text: String) { #expect(Show.bytes(count) == text) }

    @Test("times for people")
    func spans() {
        #expect(Show.seconds(0.0834) == "0.083 s")
        #expect(Show.seconds(12.44) == "12.4 s")
        #expect(Show.span(200) == "3 min 20 s")
        #expect(Show.span(90_000) == "1 d 1 h")
    }

    private func member(_ label: String, failure: String? = nil, held: Bool = true) -> MemberEvidence {
        MemberEvidence(
            agent: "host-a", plugin: "postgresql", layer: .application, resource: "cluster:/srv/db", label: label,
            volumes: ["db"], heldBeforeCut: true, releasedAfterCut: true, stillHeldAtRelease: held, quietSeconds: 0.25,
            quiesceSeconds: 0.084, failure: failure, artifacts: ["backup_label": "START WAL\nLABEL\n"])
    }

    private func snapshot(_ evidence: EvidenceInfo?) -> SnapshotInfo {
        SnapshotInfo(
            id: "id-1", name: "s1", kind: .user, volumes: ["db"], createdAt: Date(timeIntervalSince1970: 0),
            requestedConsistency: .application, achievedConsistency: evidence?.achieved ?? .crash, quietSeconds: 0.25,
            sizeBytes: 4096, clones: [], evidence: evidence)
    }

    private func evidence(_ members: [MemberEvidence], achieved: Consistency, reasons: [String]) -> EvidenceInfo {
        EvidenceInfo(
            requested: .application, policy: .allowLower, achieved: achieved, reasons: reasons,
            cut: CutInfo(epoch: 7, startedAt: Date(timeIntervalSince1970: 0), durationSeconds: 0.002), members: members)
    }

    @Test("a snapshot's outcome names every member, how long it was quiet and what it proved")
    func outcome() {
        let text = SnapshotReport.outcome(
            snapshot(
                evidence(
                    [
                        member("PostgreSQL 15 in /srv/db"), member("other", held: false),
                        member("third", failure: "no answer"),
                    ],
                    achieved: .fileSystem, reasons: ["other: the hold was lost"])))
        #expect(text.contains("Snapshot s1 of db: file-system-consistent"))
        #expect(text.contains("Less than asked for (application):\n    other: the hold was lost"))
        #expect(text.contains("PostgreSQL 15 in /srv/db"))
        #expect(text.contains("0.250 s"))
        #expect(text.contains("held across the cut"))
        #expect(text.contains("none: the hold was lost"))
        #expect(text.contains("none: no answer"))
    }

    @Test("a snapshot's description shows evidence and artifacts, or that there are none")
    func description() {
        let text = SnapshotReport.description(
            snapshot(evidence([member("PostgreSQL")], achieved: .application, reasons: [])))
        #expect(text.contains("epoch 7"))
        #expect(text.contains("backup_label of PostgreSQL (host-a):\n    | START WAL\n    | LABEL"))
        #expect(SnapshotReport.description(snapshot(nil)).contains("No evidence"))
    }

    @Test("each step of a job is told once, when it has ended")
    func progress() {
        func step(_ name: String, _ state: JobStep.State) -> JobStep {
            JobStep(name: name, state: state, startedAt: Date(), seconds: 0.5, detail: name == "cut" ? "epoch 7" : nil)
        }
        func job(_ steps: [JobStep]) -> JobInfo {
            JobInfo(id: "j", kind: "k", subject: "s", state: .running, createdAt: Date(), steps: steps)
        }
        var shown = JobProgress.Shown()
        #expect(shown.news(in: job([step("plan", .running)])) == [])
        #expect(shown.news(in: job([step("plan", .succeeded), step("cut", .running)])) == ["  plan: done in 0.500 s"])
        #expect(
            shown.news(in: job([step("plan", .succeeded), step("cut", .failed)]))
                == ["  cut: FAILED in 0.500 s (epoch 7)"])
        #expect(
            shown.news(in: job([step("plan", .compensated), step("cut", .failed)])) == ["  plan: undone in 0.500 s"])
    }

    @Test("errors become exit codes: failed, wrong usage, unreachable")
    func exitCodes() {
        #expect(Outcome.explain(APIFailure(status: 404, code: "x", message: "gone."))?.status == .failed)
        #expect(Outcome.explain(APIFailure(status: 404, code: "x", message: "gone."))?.message == "gone")
        #expect(Outcome.explain(NodeUnreachable(address: "a", cause: "b"))?.status == .unreachable)
        #expect(Outcome.explain(CommandFailure.usage("a"))?.status == .usage)
    }
}
