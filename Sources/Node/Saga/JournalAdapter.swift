import API
import Catalog
import Foundation
import Protection

/// The sagas' journal in the catalog.
struct CatalogJournal: SagaJournaling {
    let catalog: Catalog

    func append(_ entry: SagaJournalEntry) async throws {
        try await catalog.appendSagaRecord(
            SagaRecordRow(
                sagaID: entry.sagaID, kind: entry.kind.rawValue, jobID: entry.jobID, sequence: entry.sequence,
                step: entry.step, compensation: entry.compensation, body: entry.body, writtenAt: .now))
    }

    func entries() async throws -> [SagaJournalEntry] {
        try await catalog.sagaRecords().compactMap { row in
            SagaJournalEntry.Kind(rawValue: row.kind).map { kind in
                SagaJournalEntry(
                    sagaID: row.sagaID, kind: kind, jobID: row.jobID, sequence: row.sequence, step: row.step,
                    compensation: row.compensation, body: row.body)
            }
        }
    }

    func forget(sagaID: String) async throws { try await catalog.forgetSaga(id: sagaID) }

    func forget(sagaIDs: [String]) async throws { try await catalog.forgetSagas(ids: sagaIDs) }

    func quiesceHistory() async throws -> [String: Double] { try await catalog.quiesceHistory() }

    func rememberQuiesce(_ seconds: [String: Double]) async throws { try await catalog.addQuiesceHistory(seconds) }

    func lastKnownVolumes(ofAgent name: String) async throws -> Set<String>? {
        try await catalog.knownVolumes(ofAgent: name)
    }

    func unfinishedRestores() async throws -> [UnfinishedRestore] {
        try await catalog.unfinishedRestores().map { row in
            let request = try APIJSON.decoder().decode(RestoreRequest.self, from: Data(row.request.utf8))
            return UnfinishedRestore(agent: row.agent, request: request, since: row.since)
        }
    }

    func keep(_ restore: UnfinishedRestore) async throws {
        let request = String(decoding: try APIJSON.encoder().encode(restore.request), as: UTF8.self)
        try await catalog.keepUnfinishedRestore(
            UnfinishedRestoreRow(
                restoreID: restore.request.restoreID, agent: restore.agent, request: request, since: restore.since))
    }

    func forget(_ restore: UnfinishedRestore) async throws {
        try await catalog.forgetUnfinishedRestore(restoreID: restore.request.restoreID, agent: restore.agent)
    }

    func rememberVolumes(_ volumes: Set<String>, ofAgent name: String) async throws {
        try await catalog.setKnownVolumes(volumes, ofAgent: name)
    }

    func machine(ofAgent name: String) async throws -> String? { try await catalog.machine(ofAgent: name) }

    func rememberMachine(_ machine: String, ofAgent name: String) async throws {
        try await catalog.setMachine(machine, ofAgent: name)
    }
}

extension SagaJournalEntry {
    init(_ record: SnapshotRecord, sagaID: String, jobID: String) throws {
        self.init(
            sagaID: sagaID, kind: .snapshot, jobID: jobID, sequence: record.sequence, step: record.step.rawValue,
            compensation: record.step.compensation, body: try Self.json(record))
    }

    init(_ record: RevertRecord, sagaID: String, jobID: String) throws {
        self.init(
            sagaID: sagaID, kind: .revert, jobID: jobID, sequence: record.sequence, step: record.step.rawValue,
            compensation: record.step.compensation, body: try Self.json(record))
    }

    private static func json(_ record: some Encodable) throws -> String {
        String(decoding: try APIJSON.encoder().encode(record), as: UTF8.self)
    }

    func decoded<Record: Decodable>(_ type: Record.Type) throws -> Record {
        try APIJSON.decoder().decode(type, from: Data(body.utf8))
    }
}
