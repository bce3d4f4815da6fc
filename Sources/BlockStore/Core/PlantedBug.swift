/// Bugs that tests switch on to prove that the simulator finds them. None of them can be switched on in a release
/// build.
enum PlantedBug: String, CaseIterable, Sendable {
    /// Overwrites free by the deleted parent's floor on both sides of its reclaim's cursor.
    case cursorIgnoredWhenFreeing
    /// A cut leaves the head writing into the layer that the snapshot keeps.
    case writesPassTheCut
    /// Writes are admitted without room for the map pages of the next checkpoint.
    case noReserve
    /// The journal's space is reused before the checkpoint that replaces it is durable.
    case journalReusedTooEarly
    /// A commit does not sync the data before its records.
    case dataNotSynced
    /// A commit answers before its batch is synced.
    case journalNotSynced
    /// A block that was overwritten in memory is handed out before the overwriting record is durable.
    case overwrittenReusedTooEarly
    /// A block that a checkpoint frees is handed out before the checkpoint is durable.
    case freedReusedTooEarly
    /// The superblock is written before what it refers to is synced.
    case checkpointNotSynced
    /// The superblock is taken for durable without a sync.
    case superblockNotSynced
    /// The journal's checksums are not compared at recovery.
    case tornBatchAccepted
    /// An unmapped range does not get into the journal.
    case unmapNotJournalled
    /// A head keeps its old parent when it is reverted.
    case revertKeepsParent
    /// Reclaim compares with the successor only, not with the parent's epoch.
    case reclaimIgnoresParent
    /// Reclaim compares with the parent's epoch only, not with the successor.
    case reclaimIgnoresSuccessor
    /// A data block's checksum is not compared.
    case checksumIgnored
    /// What an earlier process left in the system's cache is taken for what is on the disk.
    case cacheTrusted
    /// Recovery forgets that recovered mappings use their blocks.
    case recoveredBlocksFree
    /// A read-modify-write does not notice another write that came between.
    case claimIgnored
    /// A change is acknowledged though the volatile log had no room for it.
    case logFailureIgnored
    /// The volatile log is emptied before what was replayed from it is durable.
    case logDroppedTooEarly
    /// What is in the journal is replayed from the volatile log again.
    case logRepeatsJournal
    /// A diff takes a map page that is gone for one that did not change.
    case diffForgetsHoles
    /// A promotion hands over the snapshot at the clone's origin and not the older ones.
    case promoteForgetsOlder
    /// What a set holds alone is counted without looking at what stands on it.
    case spaceIgnoresSuccessor
    /// A stream leaves out what became a hole.
    case sendForgetsHoles
    /// The place of a transfer is made durable ahead of what was received.
    case positionAhead
    /// A received member's digest is not compared.
    case digestNotCompared
    /// A checkpoint claims what entered the journal while it was written.
    case boundaryTooLate
    /// Data whose writing out was begun early counts as synced.
    case writebackTakenForSync
    /// A run is handed out as long as it is wanted, whatever lies behind its first block.
    case runNotLookedAt
    /// A bitmap that leaves the memory forgets which blocks are taken beyond its page.
    case takenForgotten
    /// What a hole takes away whole is detached and nobody reclaims it.
    case detachedForgotten
    /// What was detached is reclaimed as if nothing were below it.
    case detachedOwnsAll
    /// A step of reclaim stores a cursor beyond what it did.
    case cursorTooFar
    /// Data that was written while the last sync of a commit ran counts as synced by it.
    case lateDataTakenForSynced
    /// A commit hands out also what was overwritten after it began.
    case lateOverwritesReleased
    /// Freed blocks are handed out while readers still read them.
    case readersNotAwaited
    /// The volatile log goes on in the same file when a commit begins.
    case logNotTurned
    /// The checksum of a volatile log's entry is not compared.
    case logTornAccepted
    /// A volatile log of another run of the machine is replayed.
    case logBootIgnored
    /// A volatile log of an earlier session is replayed.
    case logSessionIgnored
    /// The replay of a volatile log goes on behind a gap.
    case logGapAccepted
    /// A checkpoint takes a map page that it cannot read for an empty one.
    case lostPageIsEmpty
    /// Reclaim takes a successor's page that it cannot read for an empty one.
    case lostSuccessorIsEmpty
}

extension PoolCore {
    func hasBug(_ bug: PlantedBug) -> Bool {
        #if DEBUG
            return options.plantedBug == bug
        #else
            return false
        #endif
    }
}
