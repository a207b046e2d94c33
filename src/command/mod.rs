//! Commands: judged by one pure function, journalled before they are acknowledged, executed one at a time per device.
